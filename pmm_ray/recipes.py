"""The methods, each as its stages in the paper's order."""

from __future__ import annotations

from collections.abc import Iterator

from pmm_ray.artefacts import Artefact
from pmm_ray.config import CamTrainConfig, Config, D2CamConfig, MasksConfig, ReliableConfig, RrmConfig, TrimapConfig
from pmm_ray.data.dataset import Dataset
from pmm_ray.errors import UserError
from pmm_ray.method import Method, Score
from pmm_ray.pipeline import Runner


def pmm(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """Pseudo-mask Matters: CAMs, CVS + PPG, segmentation with PUS, cycles."""
    it = Method(run, config, data, config.seed)
    cams = it.cams()
    it.record("CAM, best threshold", it.score_cams(cams))
    _cycles(it, cams, it.masks(cams, config.masks))
    return it.scores


def mat_label(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """Treating Pseudo-labels Generation as Image Matting, a reconstruction: D2CAM, trimaps and mattes, segmentation."""
    it = Method(run, config, data, config.seed)
    name = "D2CAM" if config.cam.npy is None and config.cam.train.d2cam.on else "CAM"
    cams = it.cams(name=name)
    it.record(f"{name}, best threshold", it.score_cams(cams))
    _cycles(it, cams, it.masks(cams, config.masks, title=f"pseudo-masks by {config.masks.maker}"))
    return it.scores


def _cycles(it: Method, cams: Artefact, masks: Artefact) -> None:
    """Segmentation on masks with PUS, and on the network's own masks, cycle after cycle."""
    with it.run.group("cycle", 0, seed=it.seed):
        pictures = it.overlays(it.data.train, cams=cams, masks=masks, made_by=it.config.masks)
        model, values = it.segmentation(masks, it.config.pus, title="segmentation")
        it.record("cycle 0", it.score_masks(masks) | values, cycle=0, pictures=pictures)
    _later_cycles(it, model, row="cycle")
    it.run.tracker.metrics(it.scores[-1].metrics())


def _later_cycles(it: Method, model: Artefact, *, row: str, after: int = 0) -> None:
    """Segmentation on a network's own masks, as often as asked for, in rows 'row 1', 'row 2', ...

    `after` is the number of the cycle that the network is of.
    """
    for cycle in range(1, it.config.cycles.count + 1):
        with it.run.group("cycle", after + cycle, seed=it.seed):
            masks = it.next_masks(model)
            pictures = it.overlays(it.data.train, cams=None, masks=masks)
            pus = it.config.pus if it.config.cycles.pus else it.no_pus
            model, values = it.segmentation(masks, pus, title=f"segmentation, cycle {cycle}")
            it.record(f"{row} {cycle}", it.score_masks(masks) | values, cycle=after + cycle, pictures=pictures)


def rrm(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """Reliability Does Matter in one step: a network that makes its own reliable labels while it trains."""
    it = Method(run, config, data, config.seed)
    _one_step(it)
    run.tracker.metrics(it.scores[-1].metrics())
    return it.scores


def rrm_two_step(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """RRM in two steps: its network's masks of the training images, and an ordinary segmentation training on them."""
    it = Method(run, config, data, config.seed)
    _second_step(it, _one_step(it))
    run.tracker.metrics(it.scores[-1].metrics())
    return it.scores


def rrm_ablation(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """RRM with each of its parts changed, in one step; and in two steps; once for each seed."""
    scores: list[Score] = []
    for seed in config.ablation.seeds:
        with run.group("seed", seed):
            it = Method(run, config, data, seed, scores)
            masks = _one_step(it)
            for row, setting in rrm_variants(config.rrm):
                model, values = it.rrm_network(setting, title=row)
                own = it.rrm_masks(model, setting, title=row)
                it.record(row, it.score_masks(own, title=f"score of the masks by {row}") | values)
            if config.ablation.segmentation:
                _second_step(it, masks)
                _upper_bound(it)
    return scores


def rrm_variants(rrm: RrmConfig) -> Iterator[tuple[str, RrmConfig]]:
    """The rows of RRM's ablation besides the method itself; with the published labels where others are set."""
    train, labels = rrm.train, rrm.labels
    if labels != ReliableConfig():
        yield "RRM, labels as published", rrm.model_copy(update={"labels": ReliableConfig()})
    for row, change in (
        ("RRM, labels where CAM and CRF agree", {"labels": labels.model_copy(update={"rule": "agreement"})}),
        ("RRM without reliability: plain CRF labels", {"labels": labels.model_copy(update={"rule": "crf"})}),
        ("RRM without dense energy", {"train": train.model_copy(update={"energy_weight": 0.0})}),
    ):
        yield row, rrm.model_copy(update=change)


def _one_step(it: Method) -> Artefact:
    """The network, its scores and its masks of the training images, which are returned."""
    rrm = it.config.rrm
    model, values = it.rrm_network(rrm, title="RRM")
    cams = it.rrm_cams(model)
    it.record("CAM of RRM, best threshold", it.score_cams(cams))
    with it.run.group("cycle", 0, seed=it.seed):
        masks = it.rrm_masks(model, rrm, title="RRM")
        pictures = it.overlays(it.data.train, cams=cams, masks=masks)
        it.record("RRM, one step", it.score_masks(masks) | values, cycle=0, pictures=pictures)
    return masks


def _second_step(it: Method, masks: Artefact) -> None:
    """A segmentation network on the masks, and the cycles that are asked for."""
    row = "RRM, two steps"
    with it.run.group("cycle", 1, seed=it.seed):
        model, values = it.segmentation(masks, it.config.pus, title=row)
        it.record(row, values, cycle=1)
    _later_cycles(it, model, row="+ cycle", after=1)


def ablation(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """The paper's table: CAM, CRF baseline, + CVS, + PPG, segmentation, + PUS, + cycles; once for each seed."""
    scores: list[Score] = []
    for seed in config.ablation.seeds:
        with run.group("seed", seed):
            it = Method(run, config, data, seed, scores)
            cams = it.cams()
            it.record("CAM, best threshold", it.score_cams(cams))
            for row, variant, setting in mask_makers(config):
                title = f"{row}, {variant}" if variant else row
                made = it.masks(cams, setting, title=title)
                it.record(row, it.score_masks(made, title=f"score of {title}"), variant=variant)
            masks = it.masks(cams, config.masks)
            pictures = it.overlays(data.train, cams=cams, masks=masks, made_by=config.masks)
            it.record("masks as configured", it.score_masks(masks), pictures=pictures)
            if config.ablation.segmentation:
                _segmentation_rows(it, masks)
    return scores


def mask_makers(config: Config) -> Iterator[tuple[str, str, MasksConfig]]:
    """The mask rows of the ablation: (row, variant, setting), one variant for each alpha; and PMM as published."""
    for alpha in config.ablation.alphas or (config.masks.alpha,):
        change = {"alpha": alpha}
        for row, more in (
            ("CRF baseline", {"maker": "baseline", "cvs": False}),
            ("+ CVS", {"maker": "baseline", "cvs": True}),
            ("+ PPG", {"maker": "ppg", "cvs": True}),
        ):
            yield row, f"alpha {alpha:g}", config.masks.model_copy(update=change | more)
    yield "CVS + PPG as published (s 0.3, t 0.05, alpha 11)", "", MasksConfig()


def _segmentation_rows(it: Method, masks: Artefact) -> None:
    _, values = it.segmentation(masks, it.no_pus, title="segmentation")
    it.record("segmentation", values)
    model, values = it.segmentation(masks, it.config.pus, title="+ PUS")
    it.record("+ PUS", values, cycle=0)
    _later_cycles(it, model, row="+ cycle")
    _upper_bound(it)


def _upper_bound(it: Method) -> None:
    if it.config.ablation.upper_bound and (truth := it.data.train.truth) is not None:
        masks = it.run("truth_masks", title="ground truth as masks", photos=it.data.train.photos, truth=truth)
        _, values = it.segmentation(masks, it.no_pus, title="upper bound")
        it.record("upper bound: trained on ground truth", values)


def mat_label_ablation(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """CAM and D2CAM, PPG and matting on each, segmentation on each of those; D2CAM's parts; once for each seed."""
    if config.cam.npy is None and not config.cam.train.d2cam.on:
        raise UserError(
            "recipe=mat_label_ablation compares CAM with D2CAM, and the weights of cam.train.d2cam are all 0: give "
            "conf/recipe/mat_label.yaml before conf/recipe/mat_label_ablation.yaml"
        )
    scores: list[Score] = []
    for seed in config.ablation.seeds:
        with run.group("seed", seed):
            it = Method(run, config, data, seed, scores)
            for name, train in cam_trainings(config):
                cams = it.cams(train, name=name)
                _cam_row(it, name, cams)
                for row, variant, setting in matting_rivals(config, name):
                    title = f"{row}, {variant}" if variant else row
                    made = it.masks(cams, setting, title=title)
                    it.record(row, it.score_masks(made, title=f"score of {title}"), variant=variant)
                _segmentation_on(it, name, cams)
            for name, train in d2cam_parts(config):
                _cam_row(it, name, it.cams(train, name=name))
            if config.ablation.segmentation:
                _upper_bound(it)
    return scores


def _cam_row(it: Method, name: str, cams: Artefact) -> None:
    it.record(f"{name}, best threshold", it.score_cams(cams, title=f"score of the CAMs, {name}"))


def cam_trainings(config: Config) -> Iterator[tuple[str, CamTrainConfig]]:
    """The CAMs that Mat-Label's ablation compares: (name, training). CAMs made elsewhere are what they are."""
    train = config.cam.train
    yield "CAM", train.model_copy(update={"d2cam": D2CamConfig()})
    if config.cam.npy is None:
        yield "D2CAM", train


def d2cam_parts(config: Config) -> Iterator[tuple[str, CamTrainConfig]]:
    """D2CAM without each of its parts that is on: (name, training)."""
    train = config.cam.train
    parts = {
        "category": "category decoupling",
        "foreground": "foreground-background decoupling",
        "stability": "stability",
        "exclusivity": "exclusivity",
    }
    for part, words in parts.items():
        less = train.d2cam.model_copy(update={part: 0.0})
        if config.cam.npy is None and config.ablation.parts and less.on and less != train.d2cam:
            yield f"D2CAM without {words}", train.model_copy(update={"d2cam": less})


def matting_rivals(config: Config, cam: str) -> Iterator[tuple[str, str, MasksConfig]]:
    """The mask rows of Mat-Label's ablation on one kind of CAM: (row, variant, setting)."""
    for alpha in config.ablation.alphas or (config.masks.alpha,):
        for maker, words in (("baseline", "CRF baseline"), ("ppg", "PPG")):
            change = {"maker": maker, "cvs": maker == "ppg", "alpha": alpha}
            yield f"{words} on {cam}", f"alpha {alpha:g}", config.masks.model_copy(update=change)
    own = (config.masks.trimap.model_copy(update={"source": source}) for source in ("cam", "crf"))
    for trimap in config.ablation.trimaps or own:
        row = f"matting on {cam}" if trimap.source == "cam" else f"matting on {cam}, trimap of two CRFs"
        yield row, trimap.words, _matting(config, trimap)


def _matting(config: Config, trimap: TrimapConfig) -> MasksConfig:
    """On CAMs that CVS has left alone."""
    return config.masks.model_copy(update={"maker": "matting", "cvs": False, "trimap": trimap})


def _segmentation_on(it: Method, cam: str, cams: Artefact) -> None:
    """Networks trained on what PPG, and what matting, makes of the CAMs."""
    ppg = it.config.masks.model_copy(update={"maker": "ppg", "cvs": True})
    for words, setting in (("PPG", ppg), ("matting", _matting(it.config, it.config.masks.trimap))):
        row = f"segmentation: {words} on {cam}"
        masks = it.masks(cams, setting, title=f"masks of {row}")
        pictures = it.overlays(it.data.train, cams=cams, masks=masks, made_by=setting, title=f"overlays of {row}")
        if it.config.ablation.segmentation:
            _, values = it.segmentation(masks, it.config.pus, title=row)
            it.record(row, values, pictures=pictures)


RECIPES = {
    "pmm": pmm,
    "ablation": ablation,
    "rrm": rrm,
    "rrm_two_step": rrm_two_step,
    "rrm_ablation": rrm_ablation,
    "mat_label": mat_label,
    "mat_label_ablation": mat_label_ablation,
}
