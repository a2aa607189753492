"""What a setting is tried on: masks made from the same CAMs, or a training with whatever it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pmm_ray.artefacts import Artefact, Store
from pmm_ray.cluster.desk import Desk
from pmm_ray.cluster.journal import row_schema, write_table
from pmm_ray.cluster.search import Report
from pmm_ray.cluster.worker import Row
from pmm_ray.config import Config, MasksConfig, SweepConfig
from pmm_ray.data.dataset import Dataset, Photos, Truth
from pmm_ray.errors import UserError
from pmm_ray.method import Method, metrics_of
from pmm_ray.pipeline import Runner
from pmm_ray.search.space import Values
from pmm_ray.settings import changed
from pmm_ray.stages.score_masks import SCORE_FACTS, all_failed, figures_of
from pmm_ray.tracking import RunHandle

SCORES_FILE = "scores.parquet"


@dataclass(frozen=True)
class MaskScores:
    """Settings of the mask maker, scored on the same CAMs; each setting's scores are an artefact of the store."""

    store: Store
    config: Config
    photos: Photos
    cams: Artefact
    truth: Truth | None
    metric: str
    reports: int

    def artefact(self, values: Values) -> Artefact:
        """Where the scores of a setting belong."""
        return self.store.artefact("score_masks", **self._identity(values))

    def settings(self, values: Values) -> MasksConfig:
        """The mask settings that the values make of the base config."""
        return changed(self.config, values).masks

    def finish(self, values: Values, rows: list[Row], facts: dict[str, Any], *, seconds: float) -> None:
        """Write the artefact: the results of all photos, and the facts made of them."""
        artefact = self.artefact(values)
        table = pa.Table.from_pylist(rows, schema=row_schema(SCORE_FACTS))
        write_table(table, artefact.path / SCORES_FILE)
        self.store.finish(artefact, **self._identity(values), facts=facts, seconds=seconds)

    def score(self, facts: dict[str, Any]) -> float:
        """The figure of the metric; 0 where nothing could be scored yet."""
        return facts.get("miou" if self.metric == "masks" else "contrast") or 0.0

    def check(self, facts: dict[str, Any]) -> None:
        """Raise UserError if nothing of all the work says how good the masks are: a score of 0 would be no score."""
        if self.truth is not None and self.metric == "masks" and not facts["scored"]:
            errors = [error for name, error in facts["failed"] if name in self.truth.masks]
            why = f", the first: {errors[0]}" if errors else ": there is none; see data.masks"
            raise UserError(f"no photo with ground truth could be scored{why}")

    def _identity(self, values: Values) -> dict[str, Any]:
        return {
            "settings": {"masks": self.settings(values).identity(), "min_images": self.config.eval.min_images},
            "inputs": {"photos": self.photos, "cams": self.cams, "truth": self.truth},
            "seed": None,
        }


class MaskTrial:
    """One mask setting, whose photos are worked on together with those of the other settings that wait at the desk."""

    def __init__(self, values: Values, *, scores: MaskScores, desk: Desk):
        self._values, self._scores, self._desk = values, scores, desk
        self._parts = halts(desk.items, scores.reports)
        self._ticket: int | None = None
        self._rows: list[Row] = []
        self._heard = self._steps = 0
        self._seconds = 0.0

    def step(self) -> Report:
        """Some more of the photos; all at once if this setting was scored before."""
        artefact = self._scores.artefact(self._values)
        if artefact.done:
            self._scores.check(artefact.facts)
            return self._report(artefact.facts, len(self._parts))
        if self._ticket is None:
            self._ticket = self._desk.join(self._scores.settings(self._values))
        while self._heard < self._parts[self._steps]:
            part, seconds = self._desk.result(self._ticket)
            self._heard += 1
            self._rows += part
            self._seconds += seconds
        self._steps += 1
        photos, min_images = self._scores.photos, self._scores.config.eval.min_images
        facts = figures_of(self._rows, photos, min_images=min_images)
        if self._steps == len(self._parts):
            # not before: the first few may be the only ones
            if why := all_failed(self._rows):
                raise UserError(why)
            self._scores.check(facts)
            self._scores.finish(self._values, self._rows, facts, seconds=self._seconds)
        return self._report(facts, self._steps)

    def _report(self, facts: dict[str, Any], steps: int) -> Report:
        named = {"mIoU/train masks": facts.get("miou"), "contrast": facts.get("contrast"), "images": facts["images"]}
        figures = {name: float(value) for name, value in named.items() if value is not None}
        return Report(steps, self._scores.score(facts), figures, str(self._scores.artefact(self._values).path))

    def close(self) -> None:
        """Take the setting back from the desk."""
        if self._ticket is not None:
            self._desk.leave(self._ticket)


class SegmentationTrial:
    """One setting of masks, network or PUS, trained in this process and scored on the validation images on the way.

    Between halts it is the ordinary training, which goes on from its own checkpoint: whatever ends the trial costs one
    epoch at most, and a run with the same settings finds it done.
    """

    def __init__(
        self, values: Values, *, config: Config, sweep: SweepConfig, data: Dataset, store: Store, handle: RunHandle
    ):
        config = changed(config, values)
        self._epochs, self._scales = halts(config.seg.train.epochs, sweep.reports), sweep.report_scales
        self._it = Method(Runner(config, store, handle), config, data, config.seed)
        self._steps = 0
        self._figures: dict[str, float] = {}

    def step(self) -> Report:
        """Train to the next halt, and score; at the last one as an ordinary run does.

        Halts that this training went past before, in a run or in a sweep with others, are left out.
        """
        it, config = self._it, self._it.config
        if not self._steps:
            masks = it.masks(it.cams(), config.masks)
            self._masks = masks
            self._figures |= metrics_of(it.score_masks(masks))
        while self._steps < len(self._epochs) - 1:
            epoch = self._epochs[self._steps]
            self._steps += 1
            model = it.segmentation_until(epoch, self._masks, config.pus, title="segmentation")
            if model is not None:
                score = it.score_network(model, self._scales, title=f"epoch {epoch}: score on val")
                return Report(self._steps, score, self._figures | {"epoch": epoch, "mIoU/val, on the way": score})
        self._steps = len(self._epochs)
        _, values = it.segmentation(self._masks, config.pus, title="segmentation")
        self._figures |= metrics_of(values)
        return Report(self._steps, values["val"], self._figures | {"epoch": self._epochs[-1]})

    def close(self) -> None:
        """Nothing to leave: no work goes on between steps."""


def halts(work: int, reports: int) -> list[int]:
    """After how many of its epochs or parts a trial reports: `reports` times, or after each; always at the end."""
    count = min(work, reports)
    return [round((i + 1) * work / count) for i in range(count)]
