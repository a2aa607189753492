"""What is done again, and what is not."""

import contextlib
import multiprocessing
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from pmm_ray.artefacts import Artefact, Folder, Store, digest
from pmm_ray.checkpoints import CHECKPOINT, discard, epochs_in
from pmm_ray.config import CamTrainConfig, Config, HeadConfig, MasksConfig, NetConfig, RrmTrainConfig, SegTrainConfig
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic
from pmm_ray.pipeline import Runner, only_one
from pmm_ray.stages.stage import snapshot
from pmm_ray.tracking import RunHandle


@pytest.fixture
def calls(monkeypatch):
    """A stage 'fake' that counts how often it is called, and what it saw."""
    seen = []

    def fake(*, context, **arguments):
        seen.append((context, arguments))
        write_atomic(context.out / "work.txt", "done")
        return {"miou": 0.5, "failed": [["a.jpg", "truncated; replace it"]]}

    monkeypatch.setitem(sys.modules, "pmm_ray.stages.fake", SimpleNamespace(fake=fake))
    monkeypatch.setattr(Runner, "start_ray", lambda self: None)
    return seen


def runner(tmp_path, **more):
    return Runner(Config(), Store(tmp_path), RunHandle(), **more)


def photos(fingerprint="p"):
    return SimpleNamespace(fingerprint=fingerprint)


def test_equal_work_is_done_once_also_by_another_runner(anywhere, calls):
    first = runner(anywhere)("fake", title="x", photos=photos(), masks=MasksConfig())
    again = runner(anywhere)("fake", title="x", photos=photos(), masks=MasksConfig())
    assert first == again
    assert len(calls) == 1


@pytest.mark.parametrize(
    "change", [{"photos": photos("q")}, {"masks": MasksConfig(alpha=4)}, {"seed": 1}, {"photos": None}]
)
def test_another_input_setting_or_seed_is_other_work(tmp_path, calls, change):
    run = runner(tmp_path)
    given = {"photos": photos(), "masks": MasksConfig(), "seed": 0}
    run("fake", title="x", **given)
    run("fake", title="x", **(given | change))
    assert len(calls) == 2


def test_a_change_upstream_redoes_what_depends_on_it_and_no_more(tmp_path, calls):
    run = runner(tmp_path)

    def recipe(alpha):
        cams = run("fake", title="cams", photos=photos())
        masks = run("fake", title="masks", cams=cams, masks=MasksConfig(alpha=alpha))
        return run("fake", title="model", masks=masks)

    recipe(11)
    recipe(4)
    assert len(calls) == 3 + 2


def test_a_dry_run_names_the_same_artefacts_and_touches_nothing(tmp_path, calls):
    dry = runner(tmp_path / "store", dry=True)
    planned = dry("fake", title="x", photos=photos())
    assert not calls and not (tmp_path / "store").exists()
    assert [step.was_done for step in dry.steps] == [False]
    assert runner(tmp_path / "store")("fake", title="x", photos=photos()) == planned


def test_a_stage_that_fails_leaves_its_work_and_no_manifest(tmp_path, calls, monkeypatch):
    def broken(*, context, **_):
        (context.out / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    monkeypatch.setitem(sys.modules, "pmm_ray.stages.fake", SimpleNamespace(fake=broken))
    run = runner(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        run("fake", title="x", photos=photos())
    artefact = run.steps[0].artefact
    assert not artefact.done
    assert (artefact.path / "half.txt").exists()


def test_the_manifest_says_what_made_the_artefact(tmp_path, calls):
    artefact = runner(tmp_path)("fake", title="x", seed=3, photos=photos(), masks=MasksConfig(alpha=4))
    manifest = artefact.manifest
    assert manifest["inputs"] == {"photos": "p"}
    assert manifest["settings"]["masks"]["alpha"] == 4
    assert manifest["seed"] == 3
    assert {"commit", "versions", "finished", "seconds"} <= manifest.keys()


def test_images_that_failed_are_listed_at_the_end_also_when_the_stage_was_done_before(tmp_path, calls):
    for _ in range(2):
        run = runner(tmp_path)
        run("fake", title="masks", photos=photos())
        assert [(item.stage, item.image, item.why) for item in run.failures] == [
            ("masks", "a.jpg", "truncated; replace it")
        ]


def test_a_weights_file_counts_by_its_content_and_not_by_its_place(tmp_path, bucket, calls):
    run = runner(tmp_path / "store")
    for name, content in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / name).write_bytes(content)
        run("fake", title="x", net=NetConfig(weights=str(tmp_path / name)))
    write_atomic(bucket / "d.pth", b"2")
    run("fake", title="x", net=NetConfig(weights=f"{bucket}/d.pth"))
    assert len(calls) == 2
    with pytest.raises(UserError, match=r"net\.weights=s3://.*e\.pth: No such file"):
        run("fake", title="x", net=NetConfig(weights=f"{bucket}/e.pth"))


def test_a_missing_weights_file_is_told_before_any_work(tmp_path, calls):
    told = r"^rrm\.net\.weights=gone\.pth: No such file or directory; give a file, 'pretrained', or 'none' with net\."
    with pytest.raises(UserError, match=told):
        runner(tmp_path, dry=True)("train_rrm", title="x", net=NetConfig(weights="gone.pth"))


NETWORKS = {
    "train_cam": {"train": CamTrainConfig()},
    "train_seg": {"train": SegTrainConfig(), "arch": "pspnet"},
    "train_rrm": {"train": RrmTrainConfig(), "head": HeadConfig()},
}


@pytest.mark.parametrize(("stage", "section"), [("train_cam", "cam"), ("train_seg", "seg"), ("train_rrm", "rrm")])
def test_a_network_that_cannot_be_built_is_told_in_the_plan_by_its_key(tmp_path, stage, section):
    def plan(**net):
        run = runner(tmp_path, dry=True)
        run(stage, title="x", photos=three_classes, net=NetConfig(**net), **NETWORKS[stage])
        return run.steps

    three_classes = SimpleNamespace(fingerprint="p", classes=range(4))
    own = {"options": {"pad_type": "same"}, "weights": "none", "batch_norm": "train"}
    assert plan(backbone="resnet18") and plan(backbone="mobilenetv2_050", **own)
    for net, told in (
        ({"backbone": "resnet5000"}, "net.backbone=resnet5000: timm has no such model; did you mean resnet50?"),
        ({"backbone": "resnet18", "options": {"pad_type": "same"}}, "net.options={'pad_type': 'same'}: not for "),
        ({"backbone": "densenet121", "output_stride": 8}, "net.output_stride=8: not for "),
        ({"backbone": "resnet18", "weights": "none"}, "net.batch_norm=frozen: without weights there is nothing to "),
        ({"backbone": "resnet18", "weights": __file__}, f"net.weights={__file__}: not a state dict"),
    ):
        with pytest.raises(UserError) as error:
            plan(**net)
        assert str(error.value).startswith(f"{section}.{told}")
        assert "\n" not in str(error.value)


def test_a_network_that_is_trained_already_is_not_built_again(tmp_path):
    run, net = runner(tmp_path, dry=True), NetConfig(backbone="resnet5000", weights="none")
    artefact = run.store.artefact("train_cam", settings={"net": net.identity()}, inputs={"photos": photos()}, seed=None)
    write_atomic(artefact.path / "manifest.json", "{}")
    assert run("train_cam", title="x", photos=photos(), net=net) == artefact


def _make_slowly(root, log):
    def slow(*, context, **_):
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return {}

    sys.modules["pmm_ray.stages.slow"] = SimpleNamespace(slow=slow)
    Runner.start_ray = lambda self: None
    Runner(Config(), Store(root), RunHandle())("slow", title="x", photos=photos())


@pytest.fixture
def trainings(monkeypatch):
    """A stage 'fake' that goes on from its checkpoint, as trainings do; up to which epochs it was called."""
    called = []

    def fake(*, context, photos):
        called.append(context.until)
        context.out.mkdir(parents=True, exist_ok=True)
        epochs = max(epochs_in(context.out), context.until or 5)
        torch.save({"history": [{}] * epochs}, context.out / CHECKPOINT)
        write_atomic(snapshot(context.out, context.until or 5), f"network of epoch {epochs}")
        return {}

    monkeypatch.setitem(sys.modules, "pmm_ray.stages.fake", SimpleNamespace(fake=fake))
    monkeypatch.setattr(Runner, "start_ray", lambda self: None)
    return called


TRAINING = {"title": "x", "photos": photos(), "seed": 0}


def test_no_network_of_an_epoch_is_made_of_one_that_was_trained_further(tmp_path, trainings):
    run = runner(tmp_path)
    second = run.until(2, "fake", **TRAINING)
    assert run.until(1, "fake", **TRAINING) is None and trainings == [2]
    third = run.until(3, "fake", **TRAINING)
    assert [(found.path / "model.pt").read_text()[-1] for found in (second, third)] == ["2", "3"]
    finished = run("fake", **TRAINING)
    discard(finished.path)
    # nor is a training that is done begun again
    assert run.until(4, "fake", **TRAINING) is None and run.until(2, "fake", **TRAINING) == second
    assert trainings == [2, 3, None]


def test_a_network_of_an_epoch_that_another_run_made_in_the_meantime_is_taken(tmp_path, trainings, monkeypatch):
    @contextlib.contextmanager
    def waited(folder, title):
        """Until the other run had made it, and had gone on."""
        with monkeypatch.context() as free:
            free.setattr("pmm_ray.pipeline.only_one", only_one)
            for epoch in (2, 4):
                runner(tmp_path).until(epoch, "fake", **TRAINING)
        yield

    monkeypatch.setattr("pmm_ray.pipeline.only_one", waited)
    found = runner(tmp_path).until(2, "fake", **TRAINING)
    assert (found.path / "model.pt").read_text() == "network of epoch 2" and trainings == [2, 4]


def test_two_runs_at_once_make_an_artefact_once(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_make_slowly, args=(tmp_path / "store", log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "made\n"


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_folder_is_known_by_its_files_and_not_by_its_place(tmp_path, bucket):
    found = []
    for name, content in (("a.npy", b"1"), ("deep/b.npy", b"1"), ("a.npy", b"2")):
        for folder in (tmp_path / "cams", bucket / "cams"):
            write_atomic(folder / name, content)
            found.append(Folder.of(str(folder), cache=tmp_path / "digests").fingerprint)
    assert found[::2] == found[1::2] and len(set(found)) == 3


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_missing_or_empty_folder_is_one_clear_line(tmp_path, bucket, name):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, bucket):
        with pytest.raises(UserError, match=name):
            Folder.of(str(folder / name), cache=tmp_path / "digests")


def test_an_artefact_is_done_when_its_manifest_is_there(tmp_path):
    assert not Artefact("x", "f", tmp_path / "nothing").done
