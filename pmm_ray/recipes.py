"""The methods, each as its stages in the paper's order."""

from __future__ import annotations

from collections.abc import Iterator

from pmm_ray.artefacts import Artefact
from pmm_ray.config import Config, MasksConfig, ReliableConfig, RrmConfig
from pmm_ray.data.dataset import Dataset
from pmm_ray.method import NO_PUS, Method, Score
from pmm_ray.pipeline import Runner


def pmm(run: Runner, config: Config, data: Dataset) -> list[Score]:
    """Pseudo-mask Matters: CAMs, CVS + PPG, segmentation with PUS, cycles."""
    it = Method(run, config, data, config.seed)
    cams = it.cams()
    it.record("CAM, best threshold", it.score_cams(cams))
    masks = it.masks(cams, config.masks)
    for cycle in range(config.cycles.count + 1):
        with run.group("cycle", cycle, seed=it.seed):
            it.overlays(data.train, cams=None if cycle else cams, masks=masks)
            pus = config.pus if cycle == 0 or config.cycles.pus else NO_PUS
            model, values = it.segmentation(masks, pus, title="segmentation")
            it.record(f"cycle {cycle}", it.score_masks(masks) | values, cycle=cycle)
            if cycle < config.cycles.count:
                masks = it.next_masks(model)
    run.tracker.metrics(it.scores[-1].metrics())
    return it.scores


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
        it.overlays(it.data.train, cams=cams, masks=masks)
        it.record("RRM, one step", it.score_masks(masks) | values, cycle=0)
    return masks


def _second_step(it: Method, masks: Artefact) -> None:
    """A segmentation network on the masks, and the cycles that are asked for."""
    for cycle in range(1, it.config.cycles.count + 2):
        with it.run.group("cycle", cycle, seed=it.seed):
            row = "RRM, two steps" if cycle == 1 else f"+ cycle {cycle - 1}"
            pus = it.config.pus if cycle == 1 or it.config.cycles.pus else NO_PUS
            model, values = it.segmentation(masks, pus, title=row)
            if cycle > 1:
                values = it.score_masks(masks) | values
                it.overlays(it.data.train, cams=None, masks=masks)
            it.record(row, values, cycle=cycle)
            if cycle <= it.config.cycles.count:
                masks = it.next_masks(model)


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
            it.record("masks as configured", it.score_masks(masks))
            it.overlays(data.train, cams=cams, masks=masks)
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
    _, values = it.segmentation(masks, NO_PUS, title="segmentation")
    it.record("segmentation", values)
    model, values = it.segmentation(masks, it.config.pus, title="+ PUS")
    it.record("+ PUS", values, cycle=0)
    for cycle in range(1, it.config.cycles.count + 1):
        with it.run.group("cycle", cycle):
            masks = it.next_masks(model)
            pus = it.config.pus if it.config.cycles.pus else NO_PUS
            model, values = it.segmentation(masks, pus, title=f"+ cycle {cycle}")
            it.record(f"+ cycle {cycle}", it.score_masks(masks) | values, cycle=cycle)
            it.overlays(it.data.train, cams=None, masks=masks)
    _upper_bound(it)


def _upper_bound(it: Method) -> None:
    if it.config.ablation.upper_bound and (truth := it.data.train.truth) is not None:
        masks = it.run("truth_masks", title="ground truth as masks", photos=it.data.train.photos, truth=truth)
        _, values = it.segmentation(masks, NO_PUS, title="upper bound")
        it.record("upper bound: trained on ground truth", values)


RECIPES = {
    "pmm": pmm,
    "ablation": ablation,
    "rrm": rrm,
    "rrm_two_step": rrm_two_step,
    "rrm_ablation": rrm_ablation,
}
