"""Stage: image-level labels -> RRM's network, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pmm_ray.config import HeadConfig, NetConfig, ReliableConfig, RrmTrainConfig
from pmm_ray.data.dataset import Classes, Photos
from pmm_ray.data.loading import Examples, WithLabels
from pmm_ray.losses.dense_energy import LatticeFilter
from pmm_ray.masks.crf import compile_engine
from pmm_ray.nets.build import check_network
from pmm_ray.report.overlays import contact_sheet, overlay_sheet, write_picture
from pmm_ray.stages import fitting
from pmm_ray.stages.crf import most_labels
from pmm_ray.stages.label_crops import LabelledCrop, Labeller, label_maker
from pmm_ray.stages.rrm_objective import SHARE, RrmObjective
from pmm_ray.stages.stage import MODEL, Context, Facts, Log
from pmm_ray.teams import Team
from pmm_ray.training import Plan
from pmm_ray.training import train as train_plan

ABOUT_FIGURES = (
    "`loss_energy` is negative by construction, so `loss` may be; it says nothing by its size, only by comparison. "
    "`reliable` is the share of the photos' pixels that got a label, `reliable/<class>` that of each class."
)


def train_rrm(
    *,
    photos: Photos,
    net: NetConfig,
    head: HeadConfig,
    train: RrmTrainConfig,
    labels: ReliableConfig,
    context: Context,
) -> Facts:
    """Train classification, then classification and segmentation together.

    Writes and logs labels/epoch-<0001...>.png: CAMs and reliable labels of some crops of each epoch that had any. The
    fact `reliable` has the share of the photos' pixels that got a label in the last epoch, of each class and in all.
    """
    settings = {"photos": photos, "net": fitting.located(net), "head": head, "train": train, "labels": labels}
    return fitting.fit_model(_work, settings, train=train, context=context)


def check(*, photos: Photos, net: NetConfig, head: HeadConfig, train: RrmTrainConfig, **_: Any) -> None:
    """See that the network can be built; the arguments are the stage's."""
    check_network("joint", weights=net.weights, crop=train.crop, **_shape(photos, net, head))


def _shape(photos: Photos, net: NetConfig, head: HeadConfig) -> dict[str, Any]:
    return {**fitting.network(net), "num_classes": len(photos.classes), **head.model_dump()}


def _work(
    team: Team,
    *,
    photos: Photos,
    net: NetConfig,
    head: HeadConfig,
    train: RrmTrainConfig,
    labels: ReliableConfig,
    out: Path,
    plan: Plan,
    log: Log,
) -> None:
    """The work of one member of the team."""
    shape = _shape(photos, net, head)
    trainee = fitting.Trainee.built("joint", shape, net=net, classes=photos.classes.names, seed=plan.seed)
    num_classes = len(photos.classes)
    make = WithLabels(fitting.augmentation(train, mean=trainee.mean), num_classes - 1)
    examples = Examples(photos.photos, make, seed=plan.seed)
    problems = 1 if labels.rule == "crf" else 2
    compile_engine(labels=most_labels(photos), problems=problems, channels=num_classes)
    # as many threads as torch has, which are this worker's share of the CPUs
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="labels") as pool:
        # widths are of the crop, the energy is computed at half its size
        sxy = train.energy_sxy / 2
        objective = RrmObjective(
            trainee.module,
            mean=trainee.mean,
            std=trainee.std,
            team=team,
            labeller=Labeller(label_maker(labels), pool),
            scales=labels.scales,
            names=photos.classes.names,
            joint_from=train.joint_from,
            make_filter=partial(LatticeFilter, sxy=sxy, srgb=train.energy_srgb, map=pool.map),
            energy_weight=train.energy_weight,
            energy_gradient=train.energy_gradient,
        )
        to_log = fitting.reporter(log)

        def report(figures: dict[str, float]) -> None:
            to_log(figures)
            _show(objective.seen, photos.classes, out / "labels", int(figures["epoch"]), log)

        record = train_plan(objective, examples, plan=plan, team=team, out=out, report=report)
    if team.rank == 0:
        facts = fitting.facts_of(record, images=len(examples), module=trainee.module)
        facts["reliable"] = {name: value for name, value in record.history[-1].items() if name.startswith(SHARE)}
        trainee.write(out / MODEL, facts)


def _show(crops: Sequence[LabelledCrop], classes: Classes, folder: Path, epoch: int, log: Log) -> None:
    """Write and log a sheet of crops with their CAMs and labels; none before the first joint step."""
    if not crops:
        return
    sheets = [
        overlay_sheet(crop.image, classes=classes, cam=crop.cam, class_ids=crop.class_ids, mask=crop.mask)
        for crop in crops
    ]
    path = folder / f"epoch-{epoch:04d}.png"
    write_picture(contact_sheet(sheets), path)
    log.picture(path, f"labels/{path.name}")
