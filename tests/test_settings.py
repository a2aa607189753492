"""Files and overrides become one config, or one clear line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pmm_ray import settings
from pmm_ray.config import CamInferConfig, ClusterConfig, Config, PusConfig, Section
from pmm_ray.errors import UserError

ROOT = Path(__file__).parents[1]


def write(path, text):
    path.write_text(text)
    return str(path)


def test_later_files_win_and_overrides_win_over_files(tmp_path):
    first = write(tmp_path / "a.yaml", "masks: {s: 0.1, t: 0.2}\nseed: 3")
    second = write(tmp_path / "b.yaml", "masks: {t: 0.4}")
    config = settings.load([first, second], ["masks.alpha=4"])
    assert (config.masks.s, config.masks.t, config.masks.alpha, config.seed) == (0.1, 0.4, 4.0, 3)


def test_a_number_in_exponent_form_is_a_number_although_yaml_reads_text():
    assert settings.load([], ["seg.train.lr=1e-3"]).seg.train.lr == 1e-3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("masks.alfa=3", ["masks.alfa", "no such key", "did you mean masks.alpha?"]),
        ("mask.alpha=3", ["mask.alpha", "did you mean masks.alpha?"]),
        ("masks.alpha=-1", ["masks.alpha", "greater than 0", "-1"]),
        ("masks.alpha=.nan", ["masks.alpha", "finite"]),
        ("pus.variant=clmap", ["pus.variant", "clamp"]),
        ("masks=3", ["masks", "a section"]),
        ("seg.train.resize=[2, 1]", ["seg.train", "smallest"]),
        ("nonsense", ["nonsense", "section.key=value"]),
        ("masks.s=[", ["masks.s", "YAML"]),
        ("data.classes=cat", ["data.classes: a list, e.g. [cat], got 'cat' (command line)"]),
        ("cam.infer.scales=[]", ["cam.infer.scales: at least 1 of them, got []"]),
        ("cam.net.mean=[0.5]", ["cam.net.mean: too few values, got [0.5]"]),
        ("cam.net.mean=[1, 2, 3, 4]", ["cam.net.mean: at most 3 values, got [1, 2, 3, 4]"]),
        ("cam.net.options=same", ["cam.net.options: names with their values, e.g. {name: value}, got 'same'"]),
        ("cam.train.flip=maybe", ["cam.train.flip: true or false, got 'maybe'"]),
        ("cam.train.epochs=1.5", ["cam.train.epochs: a whole number, got 1.5"]),
        ("cam.train.lr=fast", ["cam.train.lr: a number, got 'fast'"]),
        ("name=3", ["name: text, in quotes where YAML takes it for something else, got 3"]),
    ],
)
def test_a_wrong_override_names_its_key_and_the_mend(override, words):
    with pytest.raises(UserError) as error:
        settings.load([], [override])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("override", ["cam.infer.scales=[a]", "cam.net.mean=[0.5]", "masks.alpha=-1"])
def test_a_key_has_one_line_in_words_that_are_not_pydantics(override):
    with pytest.raises(UserError) as error:
        settings.load([], [override])
    assert "\n" not in str(error.value)
    for word in ("Input", "valid", "Tuple", "Field", "validation"):
        assert word not in str(error.value)


def test_an_application_has_keys_of_its_own_and_suggests_no_others():
    config = settings.load_application([], ["predict.scales=[1]", "crf=segmentation"])
    assert (config.predict.scales, config.crf) == ((1.0,), "segmentation")
    for override, mend in (
        ("seg.predict.flip=no", "predict.flip"),
        ("cluster.train_worker=0", "cluster.train_workers"),
    ):
        with pytest.raises(UserError, match=f"did you mean {mend}\\?"):
            settings.load_application([], [override])
    with pytest.raises(UserError, match=r"masks\.alpha: no such key \(command line\); --help lists"):
        settings.load_application([], ["masks.alpha=3"])


def test_an_error_names_the_file_that_holds_the_key(tmp_path):
    good = write(tmp_path / "good.yaml", "masks: {s: 0.1}")
    bad = write(tmp_path / "bad.yaml", "masks: {sss: 0.1}")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        settings.load([good, bad], [])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- 1\n- 2", "list"),
        ("a: [", "YAML"),
        ("3", "int"),
        ("masks: {s: 0.1, s: 0.2}", "'s' is written twice.* line 1"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text, word):
    with pytest.raises(UserError, match=word):
        settings.load([write(tmp_path / "x.yaml", text)], [])


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        settings.load(["nowhere.yaml"], [])


@pytest.mark.parametrize(
    ("file", "meant"),
    [
        ("sweeps/mask.yaml", "sweeps/masks.yaml"),
        ("conf/recipe/mobilnet.yaml", "conf/recipe/mobilenet.yaml"),
        ("rm.yaml", "conf/recipe/rrm.yaml"),
        ("my_photos.yaml", None),
    ],
)
def test_a_missing_file_brings_to_mind_one_of_nearly_its_name_and_no_other(monkeypatch, file, meant):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        settings.load([file], [])
    assert str(error.value) == f"{file}: no such config file" + (f"; did you mean {meant}?" if meant else "")


def test_a_run_suggests_no_key_of_sweeps_but_a_sweep_does(tmp_path):
    with pytest.raises(UserError, match=r"^sweep\.settings: no such key \(command line\); --help lists them all$"):
        settings.load([], ["sweep.settings=3"])
    sweep = write(tmp_path / "sweep.yaml", "sweep: {space: {masks.s: {uniform: [0, 1]}}}")
    with pytest.raises(UserError, match=r"did you mean sweep\.settings\?"):
        settings.load_sweep([sweep], ["swep.settings=3"])


def test_a_run_of_a_sweep_file_is_sent_to_the_other_program():
    with pytest.raises(UserError, match=r"masks\.yaml: this is a sweep file: python -m pmm_ray\.sweep \S+masks\.yaml"):
        settings.load([str(ROOT / "sweeps/masks.yaml")], [])


def test_an_empty_file_changes_nothing(tmp_path):
    assert settings.load([write(tmp_path / "x.yaml", "")], []) == Config()


def test_the_written_config_reads_back_equal(tmp_path):
    config = settings.load([], ["data.classes=[a, b]", "cam.net.options={pad_type: same}", "masks.alpha=4"])
    assert settings.load([write(tmp_path / "x.yaml", settings.to_yaml(config))], []) == config


def test_every_key_has_a_meaning_and_stands_in_the_help():
    text = settings.describe()
    for key, field in settings.all_keys():
        assert field.description, key
        assert f"  {key}=" in text


def test_the_config_is_frozen_all_the_way_down():
    def sections(section: Section):
        yield section
        for _, value in section:
            if isinstance(value, Section):
                yield from sections(value)

    assert all(section.model_config["frozen"] for section in sections(Config()))


def test_how_fast_the_work_is_done_is_no_part_of_what_it_is():
    slow = settings.load([], ["seg.predict.batch_size=1"])
    assert slow.seg.identity() == Config().seg.identity()
    assert settings.load([], ["seg.predict.flip=false"]).seg.identity() != Config().seg.identity()


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from pmm_ray.run import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "masks.alpha" in done.stdout


def test_the_file_of_a_local_machine_names_every_key_of_a_cluster_with_its_default():
    path = ROOT / "conf/cluster/local.yaml"
    assert list(yaml.safe_load(path.read_text())["cluster"]) == list(ClusterConfig.model_fields)
    assert settings.load([str(path)], []) == Config()


def test_the_file_of_gpus_asks_for_them_and_for_mixed_precision():
    cluster = settings.load([str(ROOT / "conf/cluster/gpu.yaml")], []).cluster
    assert cluster == ClusterConfig(gpu="yes", amp=True)


def test_the_networks_of_a_cpu_take_timms_weights_and_those_of_minivoc_its_file():
    own, file = (str(ROOT / "conf" / name) for name in ("recipe/mobilenet.yaml", "data/minivoc_weights.yaml"))
    for files, expected in (
        ([own], ("pretrained", None)),
        ([own, file], ("../shared/weights/mobilenetv2_100.pth", (0.5, 0.5, 0.5))),
    ):
        config = settings.load(files, [])
        for net in (config.cam.net, config.seg.net, config.rrm.net):
            assert net.backbone == "mobilenetv2_100"
            assert (net.weights, net.mean) == expected and net.std == net.mean


@pytest.mark.parametrize("word", ["yes", "no", "auto"])
def test_plain_yes_and_no_are_words_where_words_are_asked_for(word):
    assert settings.load([], [f"cluster.gpu={word}"]).cluster.gpu == word


def test_where_a_run_works_is_no_part_of_what_it_is():
    assert settings.load([], ["cluster.train_workers=3"]).identity() == Config().identity()


def test_a_mapping_that_is_one_value_is_replaced_as_a_whole_and_may_be_changed_by_key(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("seg: {net: {options: {a: 1, b: 2}}}\n")
    two.write_text("seg: {net: {options: {c: 3}}}\n")

    def options(*words):
        return settings.load([str(one), str(two)], list(words)).seg.net.options

    assert options() == {"c": 3}
    assert options("seg.net.options={}") == {}
    assert options("seg.net.options.d=4") == {"c": 3, "d": 4}
    assert options("seg={net: {options: {e: 5}}}") == {"e": 5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rrm.train.crop=321", r"^rrm\.train: the crop of RRM must be a multiple of 32, e\.g\. 320"),
        ("rrm.train.joint_from=1", r"^rrm\.train\.joint_from: .*less than 1"),
        ("cam.train.d2cam.low=0.9", r"^cam\.train\.d2cam: low must be at most high, got low 0\.9 and high 0\.5"),
        ("cam.train.d2cam.begin=1", r"^cam\.train\.d2cam\.begin: .*less than 1"),
        ("ablation.seeds=[0, 1, 0]", r"^ablation\.seeds: number 3 is there already, and a table needs each once"),
        ("ablation.alphas=[2, 2.0]", r"^ablation\.alphas: number 2 is there already"),
        # CRFs do not look at the CAM's thresholds
        ("ablation.trimaps=[{source: crf}, {source: crf, high: 0.9}]", r"^ablation\.trimaps: number 2 is there"),
    ],
)
def test_settings_that_would_quietly_do_nothing_or_harm_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        settings.load([], [override])


@pytest.mark.parametrize(
    ("section", "unread", "on"),
    [
        ("cam.train", "momentum=0.5", "optimizer=sgd"),
        ("cam.train", "equivariance_scale=0.5", "equivariance=1"),
        ("cam.train", "multi_crop_share=0.5", "multi_crop=true"),
        ("cam.train", "multi_crop_alpha=2", "multi_crop=true"),
        ("cam.infer", "window=100", "mode=multi_crop"),
        ("rrm.train", "momentum=0.5", "optimizer=sgd"),
        ("rrm.train", "energy_sxy=5", "energy_weight=1"),
    ],
)
def test_what_is_not_read_makes_no_other_work(section, unread, on):
    off = {"rrm.train": ["rrm.train.energy_weight=0"]}.get(section, [])

    def identity(*overrides):
        return settings.load([], [*off, *(f"{section}.{word}" for word in overrides)]).identity()

    assert identity(unread) == identity()
    assert identity(on, unread) != identity(on)


def test_a_limit_of_the_size_counts_only_where_no_size_is_given():
    def identity(**values):
        return CamInferConfig(**values).identity()

    assert identity(short_side=320, max_short_side=64) == identity(short_side=320)
    assert identity(max_short_side=64) != identity(max_short_side=None) != identity()


def test_without_pus_its_other_numbers_make_no_other_training():
    plain, other = (PusConfig(variant="none", beta=beta).identity() for beta in (0.5, 0.9))
    assert plain == other
    assert PusConfig(variant="clamp", beta=0.5).identity() != PusConfig(variant="clamp", beta=0.9).identity()
    # what the mean is over counts without PUS too
    assert PusConfig(variant="none", count_ignored=True).identity() != plain
