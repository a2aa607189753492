"""The stages that the recipes are made of, bound to one run, config, data set and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pmm_ray.artefacts import Artefact, Folder
from pmm_ray.config import (
    SEGMENTATION_CRF,
    CamTrainConfig,
    Config,
    CrfConfig,
    MasksConfig,
    PredictConfig,
    PusConfig,
    RrmConfig,
)
from pmm_ray.data.dataset import Dataset, Split
from pmm_ray.errors import UserError
from pmm_ray.pipeline import Network, Runner
from pmm_ray.report.tables import FREQUENT, PUS_ACTIVE
from pmm_ray.stages.stage import snapshot
from pmm_ray.tracking import RunHandle

BOUNDARY = " (boundary)"
"""Ends the name of a column with the mIoU in a band along outlines."""


@dataclass(frozen=True)
class Score:
    """One row of a result table for one seed. `variant` tells rows apart of which the table shows the best.

    `values` maps a column ('train masks', 'val', 'val + CRF', ...) to a mIoU in [0, 1].
    """

    row: str
    seed: int
    values: dict[str, float]
    variant: str = ""
    cycle: int | None = None

    def metrics(self) -> dict[str, float]:
        """The values under names for MLflow, whose charts are grouped by what stands before the slash."""
        return metrics_of(self.values)


def metrics_of(values: Mapping[str, float]) -> dict[str, float]:
    """Scores by column under names for MLflow; see `Score.metrics`."""
    return {_metric(name): value for name, value in values.items()}


def _metric(column: str) -> str:
    """A column's name in letters that MLflow takes: 'val + CRF' -> 'mIoU/val with CRF'."""
    if column == PUS_ACTIVE:
        return column
    groups = {FREQUENT: "mIoU of frequent classes", BOUNDARY: "mIoU along outlines"}
    suffix = next((suffix for suffix in groups if column.endswith(suffix)), "")
    return f"{groups.get(suffix, 'mIoU')}/{column.removesuffix(suffix).replace(' + ', ' with ')}"


@dataclass
class Method:
    """The stages with run, config and data set bound: a recipe names only what goes from one to the next."""

    run: Runner
    config: Config
    data: Dataset
    seed: int
    scores: list[Score] = field(default_factory=list)

    # Image-level labels -> CAMs -> pseudo-masks.

    def cams(self, train: CamTrainConfig | None = None, *, name: str = "CAM") -> Artefact:
        """CAMs of the training images: from a classifier trained on their labels, or made elsewhere.

        `train` is in place of `cam.train`, and `name` the way to train that the plan tells them apart by.
        """
        cam, photos = self.config.cam, self.data.train.photos
        if cam.npy is not None:
            folder = Folder.of(cam.npy, cache=self.run.store.digests)
            return self.run("import_cams", title="CAMs made elsewhere", photos=photos, folder=folder)
        train, by = train or cam.train, "" if name == "CAM" else f" by {name}"
        plain = train.model_copy(update={"multi_crop": False})
        model = self._classifier(f"CAM classifier{by}", plain, rough_masks=None)
        if train.multi_crop:
            alpha = train.multi_crop_alpha
            rough = MasksConfig(maker="baseline", cvs=False, alpha=alpha, crf=CrfConfig(preset="baseline"))
            masks = self.masks(self._cams_of(f"rough CAMs{by}", model), rough, title="rough masks")
            model = self._classifier(f"CAM classifier on crops{by}", train, rough_masks=masks)
        return self._cams_of(f"CAMs{by}", model)

    def _classifier(self, title: str, train: CamTrainConfig, *, rough_masks: Artefact | None) -> Artefact:
        return self.run(
            "train_cam",
            title=title,
            seed=self.seed,
            photos=self.data.train.photos,
            rough_masks=rough_masks,
            net=self.config.cam.net,
            train=train,
        )

    def _cams_of(self, title: str, model: Artefact) -> Artefact:
        return self.run(
            "infer_cams", title=title, photos=self.data.train.photos, model=model, infer=self.config.cam.infer
        )

    def masks(self, cams: Artefact, masks: MasksConfig, *, title: str = "pseudo-masks") -> Artefact:
        """Pseudo-masks of the training images."""
        return self.run("make_masks", title=title, photos=self.data.train.photos, cams=cams, masks=masks)

    # Masks -> segmentation -> the next cycle's masks.

    def segmentation(self, masks: Artefact, pus: PusConfig, *, title: str) -> tuple[Artefact, dict[str, float]]:
        """A segmentation network trained on masks, its checkpoint the last or `best_val`'s choice; and its scores."""
        choose = self.config.cycles.checkpoint == "best_val"
        model = self.run("train_seg", title=title, **self._training(masks, pus))
        active = {PUS_ACTIVE: model.facts["pus_active"]} if model.done and pus.variant != "none" else {}
        model = self._best_on_val(model, title=title) if choose else model
        if masks.stage != "truth_masks":  # ground truth makes an upper bound, not a network to use
            self.run.networks.append(Network(title, model, self.config.seg.predict))
        crf = SEGMENTATION_CRF if self.config.eval.crf else None
        return model, self._score_on_val(model, title=title, predict=self.config.seg.predict, crf=crf) | active

    @property
    def no_pus(self) -> PusConfig:
        """PUS as configured, switched off."""
        return self.config.pus.model_copy(update={"variant": "none"})

    def segmentation_until(self, epoch: int, masks: Artefact, pus: PusConfig, *, title: str) -> Artefact | None:
        """The network of `segmentation` as it is after an epoch; None where the training has left none."""
        return self.run.until(epoch, "train_seg", title=title, **self._training(masks, pus))

    def _training(self, masks: Artefact, pus: PusConfig) -> dict[str, Any]:
        seg = self.config.seg
        return {
            "seed": self.seed,
            "photos": self.data.train.photos,
            "masks": masks,
            "arch": seg.arch,
            "net": seg.net,
            "train": seg.train,
            "pus": pus,
            "snapshots": self.config.cycles.checkpoint == "best_val",
        }

    def score_network(self, model: Artefact, scales: tuple[float, ...], *, title: str) -> float:
        """mIoU of a network on the validation images, quickly: at these scales, unmirrored, no CRF, nothing kept."""
        val = self.data.val
        if val is None or val.truth is None:
            raise UserError("a network can only be scored on a validation set with ground truth; see data.val_list")
        predict = self.config.seg.predict.model_copy(update={"scales": scales, "flip": False})
        found = self.run("score_network", title=title, photos=val.photos, model=model, truth=val.truth, predict=predict)
        return found.facts["miou"]

    def _best_on_val(self, model: Artefact, *, title: str) -> Artefact:
        """The epoch with the best mIoU on val. It sees ground truth, so every score after it is an optimistic one."""
        if self.data.val is None or self.data.val.truth is None:
            raise UserError("cycles.checkpoint=best_val needs a validation set with ground truth; use 'last'")
        best, best_score = model, -1.0
        for epoch in range(1, self.config.seg.train.epochs + 1):
            then = Artefact(model.stage, f"{model.fingerprint}/{epoch}", snapshot(model.path, epoch).parent)
            epoch_title = f"{title}, epoch {epoch} (choice by val, sees ground truth)"
            values = self._score_on_val(then, title=epoch_title, predict=self.config.seg.predict, crf=None)
            if values.get("val", -1.0) > best_score:
                best, best_score = then, values["val"]
        return best

    def next_masks(self, model: Artefact) -> Artefact:
        """Cyclic pseudo-masks: the network's own prediction of the training images."""
        return self.run(
            "predict_masks",
            title="masks of the next cycle",
            photos=self.data.train.photos,
            model=model,
            predict=self.config.seg.predict,
            label_filter=self.config.cycles.label_filter,
            crf=self.config.cycles.crf,
        )

    # RRM: image-level labels -> one network -> masks.

    def rrm_network(self, rrm: RrmConfig, *, title: str) -> tuple[Artefact, dict[str, float]]:
        """RRM's network, trained end to end; and its scores."""
        model = self.run(
            "train_rrm",
            title=title,
            seed=self.seed,
            photos=self.data.train.photos,
            net=rrm.net,
            head=rrm.head,
            train=rrm.train,
            labels=rrm.labels,
        )
        self.run.networks.append(Network(title, model, rrm.predict))
        crf = rrm.crf if self.config.eval.crf else None
        return model, self._score_on_val(model, title=title, predict=rrm.predict, crf=crf)

    def rrm_cams(self, model: Artefact) -> Artefact:
        """CAMs of the training images by RRM's network, read out as those of a classifier."""
        return self._cams_of("CAMs of RRM", model)

    def rrm_masks(self, model: Artefact, rrm: RrmConfig, *, title: str) -> Artefact:
        """The network's own prediction of the training images, which a second step can learn from."""
        return self.run(
            "predict_masks",
            title=f"masks by {title}",
            photos=self.data.train.photos,
            model=model,
            predict=rrm.predict,
            label_filter=rrm.label_filter,
            crf=rrm.crf,
        )

    # Evaluation: the only stages that see ground truth.

    def score_cams(self, cams: Artefact, *, title: str = "score of the CAMs") -> dict[str, float]:
        """mIoU of the CAM at the best threshold of the curve."""
        train = self.data.train
        if train.truth is None:
            return {}
        found = self.run(
            "evaluate_cams",
            title=title,
            photos=train.photos,
            cams=cams,
            truth=train.truth,
            thresholds=self.config.eval.thresholds,
            min_images=self.config.eval.min_images,
            **self._band,
        )
        return self._values("train masks", found)

    def score_masks(self, masks: Artefact, *, title: str = "score of the masks") -> dict[str, float]:
        """mIoU of masks on the training images, whose image-level labels are given."""
        return self._score(self.data.train, masks, "masks", "train masks", title, how="image-level labels given")

    def _score_on_val(
        self, model: Artefact, *, title: str, predict: PredictConfig, crf: CrfConfig | None
    ) -> dict[str, float]:
        """mIoU of a network on the validation images, as it is and, with `crf`, after the CRF."""
        val = self.data.val
        if val is None:
            return {}
        predicted = self.run(
            "predict_masks",
            title=f"{title}: prediction of val",
            photos=val.photos,
            model=model,
            predict=predict,
            label_filter=False,
            crf=crf,
        )
        how = "no labels given, no CRF"
        values = self._score(val, predicted, "raw", "val", f"{title}: score on val", how=how)
        if crf is not None:
            how, title = f"no labels given, {crf.words}", f"{title}: score on val with CRF"
            values |= self._score(val, predicted, "masks", "val + CRF", title, how=how)
        return values

    def _score(
        self, split: Split, masks: Artefact, folder: str, column: str, title: str, *, how: str
    ) -> dict[str, float]:
        if split.truth is None:
            return {}
        found = self.run(
            "evaluate_masks",
            title=title,
            photos=split.photos,
            masks=masks,
            folder=folder,
            truth=split.truth,
            min_images=self.config.eval.min_images,
            protocol=f"{self.data.name} {split.name}, {split.truth.protocol}, {how}, 255 of the ground truth left out",
            **self._band,
        )
        return self._values(column, found)

    @property
    def _band(self) -> dict[str, Any]:
        """What has an evaluation look along outlines too; nothing where it is not to: older scores stay valid."""
        return {"boundary": self.config.eval.boundary} if self.config.eval.boundary else {}

    def _values(self, column: str, found: Artefact) -> dict[str, float]:
        if not found.done:
            return {}
        facts = found.facts
        along = {f"{column}{BOUNDARY}": facts["miou_boundary"]} if "miou_boundary" in facts else {}
        return {column: facts["miou"], f"{column}{FREQUENT}": facts["miou_frequent"]} | along

    def overlays(
        self,
        split: Split,
        *,
        cams: Artefact | None,
        masks: Artefact,
        made_by: MasksConfig | None = None,
        title: str = "overlays",
    ) -> Artefact | None:
        """Pictures of photo, CAM, mask and ground truth, and the masks alone; None where no pictures are asked for.

        Those of masks `made_by` matting show its trimaps and mattes too.
        """
        count = self.config.tracking.overlays
        if not count:
            return None
        more: dict[str, Any] = {"matting": made_by} if made_by and made_by.maker == "matting" else {}
        return self.run(
            "draw_overlays",
            title=title,
            photos=split.photos,
            cams=cams,
            masks=masks,
            folder="masks",
            truth=split.truth,
            count=count,
            **more,
        )

    def record(
        self,
        row: str,
        values: dict[str, float],
        *,
        variant: str = "",
        cycle: int | None = None,
        pictures: Artefact | None = None,
    ) -> None:
        """Keep one line for the table, and log it: with the run of its cycle, or as a run of its own.

        The tag 'row' is what MLflow's charts find the lines of a table by, and group those of several seeds. They also
        show the masks of `pictures`, see `overlays`, beside those of the same photos in other lines.
        """
        score = Score(row, self.seed, values, variant, cycle)
        self.scores.append(score)
        name = f"{row}, {variant}" if variant else row
        if self.run.tracker.inherited.get("stage") == "cycle":
            self.run.tracker.tag("row", name)
            _log_line(self.run.tracker, score, pictures)
            return
        with self.run.tracker.child(name, tags={"stage": "row", "row": name}, key=f"row {name}") as handle:
            _log_line(handle, score, pictures)


def _log_line(handle: RunHandle, score: Score, pictures: Artefact | None) -> None:
    handle.metrics(score.metrics())
    if pictures is not None and pictures.done:
        for name in pictures.facts["pictures"]:
            handle.panel(pictures.path / "panels" / f"{name}.png", f"masks/{name}")
