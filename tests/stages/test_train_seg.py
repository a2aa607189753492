"""Masks to segmenter."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pmm_ray.artefacts import Artefact
from pmm_ray.config import ClusterConfig, NetConfig, PusConfig, SegTrainConfig
from pmm_ray.data.dataset import Classes, Photo, Photos
from pmm_ray.errors import UserError
from pmm_ray.losses.segmentation import cross_entropy
from pmm_ray.nets.build import build_network, load_model
from pmm_ray.stages.stage import Context
from pmm_ray.stages.train_seg import SegObjective, _shape, train_seg
from pmm_ray.teams import LocalTeam

NET = NetConfig(backbone="mobilenetv2_035", weights="none", output_stride=16)

CLASSES = Classes(("background", "red", "green"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


class NoLog:
    def metrics(self, values, step=None): ...

    def picture(self, path, name): ...


def photos_and_masks(folder: Path, ok: int) -> tuple[Photos, Artefact]:
    """Five photos, of which the first `ok` have masks."""
    photos, rows = [], []
    for index in range(5):
        image = np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
        photos.append(Photo(str(index), str(folder / f"{index}.png"), (1,)))
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray((image[:, :, 0] > 128).astype(np.uint8)).save(folder / "masks" / f"{index}.png")
        rows.append({"name": str(index), "status": "ok" if index < ok else "failed", "error": None})
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return Photos(tuple(photos), CLASSES, "f"), Artefact("make_masks", "f", folder)


def run(folder: Path, *, ok: int, **changes):
    photos, masks = photos_and_masks(folder, ok)
    context = Context(
        out=folder / "out", seed=0, cluster=ClusterConfig(gpu="no", train_workers=0), log=NoLog(), title="seg"
    )
    train = SegTrainConfig(epochs=2, batch_size=2, crop=32, lr=1e-3)
    return train_seg(photos=photos, masks=masks, arch="deeplabv3plus", net=NET, train=train,
                     pus=PusConfig(variant="clamp", beta=100.0), context=context, **changes)  # fmt: skip


def test_stage_leaves_a_model_and_one_of_each_epoch_and_counts_what_has_no_mask(tmp_path):
    facts = run(tmp_path, ok=4, snapshots=True)
    assert facts["images"] == 4 and facts["without_mask"] == 1 and facts["pus_active"] == 1.0
    models = [tmp_path / "out" / name / "model.pt" for name in (".", "snapshots/0001", "snapshots/0002")]
    first, second, third = (load_model(path)[0].state_dict() for path in models)
    assert all(torch.equal(first[name], third[name]) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_no_usable_mask_is_one_line(tmp_path):
    with pytest.raises(UserError, match="none of the 5 training images has a mask"):
        run(tmp_path, ok=0)


def test_every_setting_reaches_the_objective_and_the_examples(tmp_path, monkeypatch):
    seen = {}

    def objective(net, **given):
        seen.update(given)
        raise KeyboardInterrupt

    def examples(photos, make, *, seed):
        seen.update(make=make, seed=seed)

    monkeypatch.setattr("pmm_ray.stages.train_seg.SegObjective", objective)
    monkeypatch.setattr("pmm_ray.stages.train_seg.Examples", examples)
    photos, masks = photos_and_masks(tmp_path, 4)
    here = ClusterConfig(gpu="no", train_workers=0)
    train = SegTrainConfig(epochs=2, batch_size=2, crop=32, loss="bce", aux_weight=0.7)
    pus = PusConfig(variant="pow", beta=0.3, kappa=0.9, gate="local", count_ignored=True)
    with pytest.raises(KeyboardInterrupt):
        train_seg(photos=photos, masks=masks, arch="deeplabv3plus", train=train, pus=pus,
                  net=NET.model_copy(update={"mean": (0.2, 0.4, 0.6), "std": (0.1, 0.2, 0.3)}),
                  context=Context(out=tmp_path / "out", seed=5, cluster=here, log=NoLog(), title="seg"))  # fmt: skip
    make = seen.pop("make")
    assert make.augment.fill == (51, 102, 153) and make.augment.crop == 32
    seen.pop("team")
    assert seen == {"mean": (0.2, 0.4, 0.6), "std": (0.1, 0.2, 0.3), "loss": "bce", "aux_weight": 0.7, "seed": 5,
                    "variant": "pow", "beta": 0.3, "kappa": 0.9, "gate": "local", "count_ignored": True}  # fmt: skip


@pytest.mark.parametrize("weight", [0.4, 0.0])
def test_there_is_an_auxiliary_head_if_it_has_a_weight(tmp_path, weight):
    photos, _ = photos_and_masks(tmp_path, 1)
    shape = _shape(photos, "deeplabv3plus", NET, SegTrainConfig(aux_weight=weight))
    net = build_network("segmenter", weights="none", **shape).train()
    assert ("aux" in net(torch.zeros(2, 3, 32, 32))) == (weight > 0)


class HalfOfTwo(LocalTeam):
    """One of two workers, the other of which has as many pixels, which are counted in double precision, and no loss."""

    size = 2

    def sum(self, value):
        return 2 * value if value.dtype == torch.float64 else value


@pytest.mark.parametrize(("gate", "acts"), [("global", True), ("local", False)])
def test_the_local_gate_looks_at_the_workers_own_part_of_the_batch(gate, acts):
    given = {"loss": "ce", "aux_weight": 0.4, "variant": "clamp", "beta": 1.0, "kappa": 0.5, "count_ignored": True}
    objective = SegObjective(Given(LOGITS), mean=(0.5,) * 3, std=(0.5,) * 3, team=HalfOfTwo(), gate=gate, **given)
    # its own mean is above beta, that of both half of it
    found = objective(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), MASK)
    assert 1.0 < LOSSES.sum() / 4 < 2.0 and bool(found["pus_active"]) == acts


class Given(torch.nn.Module):
    """A network that always says the same."""

    def __init__(self, main, aux=None):
        super().__init__()
        self.logits = {"main": main} if aux is None else {"main": main, "aux": aux}

    def forward(self, images):
        return self.logits


def figures(main, mask, aux=None, **changes):
    given = {"loss": "ce", "aux_weight": 0.4, "variant": "none", "beta": 0.5, "kappa": 0.5, "gate": "global",
             "count_ignored": False} | changes  # fmt: skip
    objective = SegObjective(Given(main, aux), mean=(0.5,) * 3, std=(0.5,) * 3, team=LocalTeam(), **given)
    return objective(torch.zeros(len(mask), 3, 2, 2, dtype=torch.uint8), mask)


MASK = torch.tensor([[[0, 1], [2, 255]]])
# Losses of the first three pixels, by hand: log 3, log 3 and log(2 + e^3) (class 2 where class 0 has 3).
LOGITS = torch.zeros(1, 3, 2, 2)
LOGITS[0, 0, 1, 0] = 3.0
LOSSES = torch.tensor([3.0, 3.0, 2 + math.exp(3)]).log()


def test_mean_is_over_valid_pixels_and_counting_ignored_ones_is_an_option():
    assert torch.allclose(figures(LOGITS, MASK)["loss"], LOSSES.mean())
    assert torch.allclose(figures(LOGITS, MASK, count_ignored=True)["loss"], LOSSES.sum() / 4)


def test_the_auxiliary_head_is_added_by_its_weight():
    found = figures(LOGITS, MASK, aux=torch.zeros(1, 3, 2, 2))
    assert torch.allclose(found["loss_aux"], torch.tensor(3.0).log())
    assert torch.allclose(found["loss"], LOSSES.mean() + 0.4 * torch.tensor(3.0).log())


@pytest.mark.parametrize("gate", ["global", "local"])
def test_pus_acts_below_beta_on_each_head_by_itself(gate):
    aux = torch.zeros(1, 3, 2, 2)  # mean log 3 = 1.10; the main head's is 1.75
    found = figures(LOGITS, MASK, aux=aux, variant="clamp", beta=1.5, kappa=0.5, gate=gate)
    assert not found["pus_active"] and found["pus_active_aux"]
    assert torch.allclose(found["loss_main"], LOSSES.mean()) and found["loss_aux"] == 0.5
    found = figures(LOGITS, MASK, variant="clamp", beta=2.0, kappa=2.0, gate=gate)
    assert found["pus_active"] and torch.allclose(found["loss"], LOSSES.clamp(max=2).mean())


def test_counting_ignored_pixels_lowers_the_gates_mean():
    settings = {"variant": "clamp", "beta": 1.5, "kappa": 1.0}  # mean 1.75, or 1.32 with the ignored one
    assert not figures(LOGITS, MASK, **settings)["pus_active"]
    assert figures(LOGITS, MASK, **settings, count_ignored=True)["pus_active"]


def test_a_batch_without_a_valid_pixel_costs_nothing():
    nothing = torch.full((1, 2, 2), 255)
    assert figures(LOGITS, nothing, variant="rescale", beta=0.5)["loss"] == 0


def test_binary_loss_is_another_loss_on_the_same_pixels():
    zero = torch.zeros(1, 3, 2, 2)
    assert torch.allclose(figures(zero, MASK, loss="bce")["loss"], 3 * torch.tensor(2.0).log())
    assert torch.allclose(figures(zero, MASK)["loss"], cross_entropy(zero, MASK).sum() / 3)
