"""The training loop: same result for any number of workers and after any interruption."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from pmm_ray.checkpoints import CHECKPOINT, Record, epochs_in
from pmm_ray.config import ReliableConfig
from pmm_ray.data.dataset import Photo
from pmm_ray.data.loading import Examples, WithLabels, WithMasks
from pmm_ray.data.transforms import Augment
from pmm_ray.errors import UserError
from pmm_ray.files import readable
from pmm_ray.losses.dense_energy import LatticeFilter
from pmm_ray.nets.batch_norm import GlobalBatchNorm
from pmm_ray.nets.build import build_classifier, build_joint, build_segmenter
from pmm_ray.stages.d2cam_objective import D2CamObjective
from pmm_ray.stages.label_crops import Labeller, label_maker
from pmm_ray.stages.rrm_objective import RrmObjective
from pmm_ray.stages.train_seg import SegObjective
from pmm_ray.teams import DistributedTeam, LocalTeam, Team, global_mean
from pmm_ray.training import Objective, Plan, _precision, make_optimizer, rate, set_rates, train

PLAN = Plan(
    epochs=3,
    batch_size=4,
    optimizer="sgd",
    lr=0.01,
    head_lr_factor=10.0,
    momentum=0.9,
    weight_decay=1e-3,
    poly_power=0.9,
    warmup=0,
    checkpoint_every=1,
    loader_workers=0,
    amp=True,
    seed=0,
)
SLOW = replace(PLAN, epochs=2, lr=1e-4)  # so that rounding does not grow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def examples_in(folder: Path) -> Examples:
    """Six photos whose masks hold very different shares of 255."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    photos, masks = [], {}
    for index in range(6):
        name = f"photo{index}"
        Image.fromarray(noise.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        mask = noise.integers(0, 3, (40, 40), dtype=np.uint8)
        mask[: 7 * index] = 255
        masks[name] = folder / f"{name}_mask.png"
        Image.fromarray(mask).save(masks[name])
        photos.append(Photo(name, str(folder / f"{name}.png"), (1, 2)))
    augment = Augment(crop=32, resize=(0.9, 1.4), flip=True, jitter=0.0, fill=(0, 0, 0))
    return Examples(photos, WithMasks(augment, masks, num_classes=3), seed=0)


def objective_for(team: Team, **changes) -> SegObjective:
    torch.manual_seed(0)
    net = build_segmenter(arch="deeplabv3plus", backbone="mobilenetv2_035", options={}, output_stride=16,
                          weights="none", num_classes=3, aux=True, batch_norm="train")  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what is dropped does depend on how a batch is split
    pus = {"variant": "rescale", "beta": 1.2, "kappa": 0.8, "gate": "global", "count_ignored": False}
    half = (0.5, 0.5, 0.5)
    return SegObjective(net, mean=half, std=half, team=team, loss="ce", aux_weight=0.4, **(pus | changes))


def rrm_examples_in(folder: Path) -> Examples:
    """The same photos with their labels; small ones, so that crops are filled in."""
    augment = Augment(crop=32, resize=(0.7, 1.2), flip=True, jitter=0.0, fill=(0, 0, 0))
    return Examples(examples_in(folder).photos, WithLabels(augment, 2), seed=0)


@contextmanager
def rrm_objective_for(team: Team) -> Iterator[RrmObjective]:
    """Labels on two threads; the second of two epochs is joint.

    Batch norm is frozen: what else rounding does to the statistics of noise, labels would show as other pixels.
    """
    torch.manual_seed(0)
    net = build_joint(backbone="mobilenetv2_035", options={}, output_stride=16, weights="none", num_classes=3,
                      channels=8, dilation=1, batch_norm="frozen")  # fmt: skip
    nn.init.normal_(net.classifier.head.weight, std=0.1)
    half = (0.5, 0.5, 0.5)
    with ThreadPoolExecutor(2) as pool:
        yield RrmObjective(
            net,
            mean=half,
            std=half,
            team=team,
            labeller=Labeller(label_maker(ReliableConfig(top_share=0.9)), pool),
            scales=(0.5, 1.0, 2.0),
            names=("background", "red", "green"),
            joint_from=0.5,
            make_filter=partial(LatticeFilter, sxy=10.0, srgb=60.0, map=pool.map),
            energy_weight=1e-3,
            energy_gradient="published",
        )


def d2cam_objective_for(team: Team) -> D2CamObjective:
    """D2CAM with every part on; batch norm is frozen, as for RRM."""
    torch.manual_seed(0)
    net = build_classifier(backbone="mobilenetv2_035", options={}, output_stride=16, weights="none", num_classes=2)
    nn.init.normal_(net.head.weight, std=0.1)
    half = (0.5, 0.5, 0.5)
    return D2CamObjective(
        net,
        mean=half,
        std=half,
        team=team,
        num_classes=2,
        channels=net.channels,
        category=0.1,
        foreground=0.1,
        stability=0.5,
        exclusivity=0.5,
        begin=0.0,
        high=0.4,
        low=0.3,
        temperature=1.0,
        momentum=0.5,
        average=0.5,
    )


def run_of_two(rank: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    team = DistributedTeam()
    objective = objective_for(team)
    record = train(objective, examples_in(folder / str(rank)), plan=SLOW, team=team, out=folder)
    with rrm_objective_for(team) as rrm:
        rrm_record = train(rrm, rrm_examples_in(folder / str(rank)), plan=SLOW, team=team, out=folder / "rrm")
    d2cam = d2cam_objective_for(team)
    d2cam_record = train(d2cam, rrm_examples_in(folder / str(rank)), plan=SLOW, team=team, out=folder / "d2cam")
    norm, x = uneven_batch()
    x = (x[:1] if rank == 0 else x[1:]).requires_grad_()
    norm = GlobalBatchNorm(norm)
    norm(x).pow(3).sum().backward()
    grads = [None, None]
    dist.all_gather_object(grads, (x.grad, norm.weight.grad))
    if rank == 0:
        batch_norm = {"grads": grads, "state": norm.state_dict()}
        of_rrm = {"rrm": rrm.state_dict(), "rrm_history": rrm_record.history}
        of_rrm |= {"d2cam": d2cam.state_dict(), "d2cam_history": d2cam_record.history}
        seg = {"net": objective.net.state_dict(), "history": record.history}
        torch.save({**seg, **of_rrm, **batch_norm}, folder / "two.pt")
    dist.destroy_process_group()


def uneven_batch() -> tuple[nn.BatchNorm2d, torch.Tensor]:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3).double().train()
    nn.init.normal_(norm.weight)
    return norm, torch.randn(4, 3, 2, 5, dtype=torch.float64) * 3 + 1


@pytest.fixture(scope="module")
def of_two_workers(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(run_of_two, (folder,), nprocs=2)
    return torch.load(folder / "two.pt", weights_only=True)


def test_batch_norm_of_two_workers_is_that_of_the_whole_batch_however_it_is_split(of_two_workers):
    norm, x = uneven_batch()
    norm(x.requires_grad_()).pow(3).sum().backward()
    (first, weight_first), (second, weight_second) = of_two_workers["grads"]
    assert torch.allclose(torch.cat([first, second]), x.grad)
    assert torch.allclose(weight_first + weight_second, norm.weight.grad)
    for name, value in norm.state_dict().items():
        assert torch.allclose(of_two_workers["state"][name], value), name


def test_two_workers_and_one_end_with_the_same_weights(tmp_path, of_two_workers):
    two = of_two_workers
    objective = objective_for(LocalTeam())
    before = {name: value.clone() for name, value in objective.net.state_dict().items()}
    record = train(objective, examples_in(tmp_path), plan=SLOW, team=LocalTeam(), out=tmp_path)
    assert len(record.history) == 2
    # rounding grows with every step of an untrained network; batch norms of half the batch differ by tenths
    for ours, theirs, apart in zip(record.history, two["history"], (1e-5, 1e-3), strict=True):
        for name in ("loss", "loss_main", "loss_aux", "pus_active"):
            assert theirs[name] == pytest.approx(ours[name], abs=apart)
    assert_moved_alike(two["net"], objective.net, before)


def assert_moved_alike(theirs: dict, module: nn.Module, before: dict) -> None:
    """Each weight went the same way, but for a tenth of it: a factor in a gradient would be seen, rounding not."""
    moved = {name: value.float() - before[name].float() for name, value in module.state_dict().items()}
    for name, value in module.state_dict().items():
        apart = (theirs[name].float() - value.float()).norm()
        assert apart <= 0.1 * moved[name].norm() + 1e-6 * (1 + value.float().norm()), name
    assert sum(way.norm() > 0 for way in moved.values()) > 10


def test_rrm_of_two_workers_and_of_one_has_the_same_labels_losses_and_weights(tmp_path, of_two_workers):
    two = of_two_workers
    with rrm_objective_for(LocalTeam()) as rrm:
        before = {name: value.clone() for name, value in rrm.state_dict().items()}
        record = train(rrm, rrm_examples_in(tmp_path), plan=SLOW, team=LocalTeam(), out=tmp_path)
    ours, theirs = record.history, two["rrm_history"]
    assert [epoch.keys() for epoch in ours] == [epoch.keys() for epoch in theirs]
    assert len(ours[0]) == 5 and ours[1]["reliable/red"] > 0 and ours[1]["loss_energy"] < -0.1
    for name in ours[1].keys() - {"seconds"}:
        # a pixel at the edge of what is reliable may fall to the other side by rounding
        assert theirs[1][name] == pytest.approx(ours[1][name], abs=1e-3), name
    assert_moved_alike(two["rrm"], rrm, before)


def test_d2cam_of_two_workers_and_of_one_has_the_same_prototypes_losses_and_weights(tmp_path, of_two_workers):
    two, team = of_two_workers, LocalTeam()
    d2cam = d2cam_objective_for(team)
    before = {name: value.clone() for name, value in d2cam.state_dict().items()}
    record = train(d2cam, rrm_examples_in(tmp_path), plan=SLOW, team=team, out=tmp_path)
    for ours, theirs in zip(record.history, two["d2cam_history"], strict=True):
        assert ours.keys() == theirs.keys() and ours["sure"] > 0 and ours["loss_category"] > 0
        for name in ours.keys() - {"seconds"}:
            assert theirs[name] == pytest.approx(ours[name], abs=1e-3), name
    assert_moved_alike(two["d2cam"], d2cam, before)
    assert d2cam.prototypes.known.all()


@pytest.mark.parametrize("kind", ["segmentation", "d2cam"])
def test_a_run_ended_after_any_epoch_goes_on_to_the_same_end_however_images_are_loaded(tmp_path, kind):
    """That of D2CAM with its prototypes and its moving average of networks."""

    def run(out: Path, report=lambda figures: None, processes: int = 1) -> dict[str, torch.Tensor]:
        objective, examples = objective_for(LocalTeam()), examples_in(tmp_path / "data")
        if kind == "d2cam":
            objective, examples = d2cam_objective_for(LocalTeam()), rrm_examples_in(tmp_path / "data")
        for module in objective.net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        plan = replace(PLAN, loader_workers=processes)
        train(objective, examples, plan=plan, team=LocalTeam(), out=out, report=report)
        return objective.state_dict()

    class EndedError(Exception):
        pass

    def end_after(epoch: int):
        def report(figures: dict[str, float]) -> None:
            if figures["epoch"] == epoch:
                raise EndedError

        return report

    whole = run(tmp_path / "whole")
    for epoch in (2, 3):
        with pytest.raises(EndedError):
            run(tmp_path / "broken", end_after(epoch))
    again = run(tmp_path / "broken", processes=0)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    figures = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert [epoch["epoch"] for epoch in figures[1]] == [1, 2, 3]
    assert [epoch["loss"] for epoch in figures[0]] == [epoch["loss"] for epoch in figures[1]]


def test_epochs_after_the_last_checkpoint_are_done_again_and_told_once(tmp_path, anywhere):
    class Ended(Exception):  # noqa: N818
        pass

    def end(figures: dict[str, float]) -> None:
        if figures["epoch"] == 3:
            raise Ended

    plan, out = replace(PLAN, epochs=4, checkpoint_every=2), anywhere / "run"
    with pytest.raises(Ended):
        train(Line(), examples_in(tmp_path / "d"), plan=plan, team=LocalTeam(), out=out, report=end)
    assert len(torch.load(readable(out / CHECKPOINT), weights_only=True)["history"]) == 2
    told: list[float] = []
    train(Line(), examples_in(tmp_path / "d"), plan=plan, team=LocalTeam(), out=out,
          report=lambda figures: told.append(figures["epoch"]))  # fmt: skip
    assert told == [3, 4]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4


class Line(Objective):
    """The smallest thing that learns: a backbone weight, a head weight and a bias."""

    def __init__(self, poison: float = 0.0):
        super().__init__()
        self.net = nn.Module()
        self.net.backbone = nn.Linear(1, 1, bias=False)
        self.net.head = nn.Linear(1, 1)
        self.poison = poison

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        means = images.float().mean(dim=(1, 2, 3))[:, None] / 255
        return {"loss": self.net.head(self.net.backbone(means)).square().mean() + self.poison}


def test_every_step_has_the_rate_of_its_place_in_the_whole_training(tmp_path):
    plan, told = replace(PLAN, epochs=3, warmup=3, poly_power=2.0), []
    train(Line(), examples_in(tmp_path), plan=plan, team=LocalTeam(), out=tmp_path, report=told.append)
    # six steps; of each epoch's second: warmed up by 2/3, then whole
    assert [figures["lr"] for figures in told] == pytest.approx(
        [0.01 * 2 / 3 * (5 / 6) ** 2, 0.01 * (3 / 6) ** 2, 0.01 * (1 / 6) ** 2]
    )


def test_an_epoch_to_stop_at_has_its_checkpoint_however_rarely_they_are_written(tmp_path):
    plan = replace(PLAN, epochs=4, checkpoint_every=3, until=2)
    train(Line(), examples_in(tmp_path), plan=plan, team=LocalTeam(), out=tmp_path)
    assert epochs_in(tmp_path) == 2


class Draws(Line):
    """Notes what chance gave it, as dropout would have it, and which images it saw."""

    def __init__(self):
        super().__init__()
        self.drawn: list[float] = []
        self.seen: list[float] = []

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        self.drawn.append(torch.rand(()).item())
        self.seen.append(images.float().mean().item())
        return super().forward(images, targets)


def test_the_loop_draws_by_the_plans_seed_and_the_workers_rank(tmp_path):
    def run(name: str, *, seed: int = 0, team: LocalTeam | None = None) -> Draws:
        objective = Draws()
        plan = replace(PLAN, seed=seed, epochs=1)
        train(objective, examples_in(tmp_path), plan=plan, team=team or LocalTeam(), out=tmp_path / name)
        return objective

    plain, again, other = run("a"), run("b"), run("c", seed=1)
    assert plain.drawn == again.drawn and plain.seen == again.seen
    assert plain.drawn != other.drawn and plain.seen != other.seen
    second = LocalTeam()
    second.rank = 1
    # every second image is its share
    assert run("d", team=second).drawn != plain.drawn


def test_workers_that_see_different_checkpoints_do_not_train_together(tmp_path):
    class Apart(LocalTeam):
        """Another worker has three epochs behind it."""

        def gather(self, value):
            return [value, 3]

    with pytest.raises(RuntimeError, match=r"different checkpoints in .*; all nodes must share the store"):
        train(Line(), examples_in(tmp_path), plan=PLAN, team=Apart(), out=tmp_path / "out")


def test_a_training_goes_on_with_another_precision(tmp_path, monkeypatch):
    def run(until: int, enabled: bool) -> Record:
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=8.0)
        monkeypatch.setattr("pmm_ray.training._precision", lambda team, amp: (None, scaler))
        return train(Line(), examples_in(tmp_path), plan=replace(PLAN, until=until), team=LocalTeam(), out=tmp_path)

    for until, enabled in ((1, False), (2, True), (3, False)):
        assert len(run(until, enabled).history) == until


@pytest.mark.parametrize(
    ("has", "others", "expected"), [(True, True, "bfloat16"), (True, False, "float16"), (False, True, "float16")]
)
def test_all_workers_take_the_precision_that_each_has(monkeypatch, has, others, expected):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: has or including_emulation)
    monkeypatch.setattr("torch.amp.GradScaler", lambda device, enabled: enabled)
    team = SimpleNamespace(device=torch.device("cuda"), gather=lambda value: [value, others])
    half, scaled = _precision(team, amp=True)
    assert str(half) == f"torch.{expected}" and scaled == (expected == "float16")


class Late(Line):
    """Has a figure of its own in the second half, and notes the progress that it was told."""

    def __init__(self):
        super().__init__()
        self.told: list[float] = []

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        self.told.append(self.progress)
        late = {} if self.progress < 0.5 else {"late": torch.tensor(8.0)}
        return super().forward(images, targets) | late


def test_an_objective_is_told_its_progress_and_a_figure_is_averaged_over_the_steps_that_have_it(tmp_path):
    objective, told = Late(), []
    train(objective, examples_in(tmp_path), plan=PLAN, team=LocalTeam(), out=tmp_path, report=told.append)
    assert objective.told == [step / 6 for step in range(6)]
    assert ["late" in figures for figures in told] == [False, True, True]
    assert told[1]["late"] == told[2]["late"] == 8.0


class Waits(Line):
    """Its head is idle for the first half, with gradients of zeros."""

    def idle(self):
        return list(self.net.head.parameters()) if self.progress < 0.5 else []

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.idle():
            return super().forward(images, targets)
        zero = 0 * sum(parameter.sum() for parameter in self.net.head.parameters())
        return {"loss": self.net.backbone(torch.ones(1, 1)).square().sum() + zero}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_idle_stays_as_it_is_and_then_begins_as_if_the_training_did(tmp_path, optimizer):
    plan, objective = replace(PLAN, optimizer=optimizer, epochs=2, weight_decay=0.1), Waits()
    nn.init.ones_(objective.net.head.weight)
    train(objective, examples_in(tmp_path), plan=replace(plan, until=1), team=LocalTeam(), out=tmp_path)
    assert objective.net.head.weight.item() == 1
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)["optimizer"]["state"]
    assert len(state) == 1  # the backbone's alone


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_images(tmp_path, poison):
    with pytest.raises(
        UserError, match=r"^train\.lr: the loss is (nan|inf) at step 1: .*photo\d, photo\d, photo\d, photo\d$"
    ):
        train(Line(poison), examples_in(tmp_path), plan=PLAN, team=LocalTeam(), out=tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


class Steep(Line):
    """Its loss is a number and its gradient none."""

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": super().forward(images, targets)["loss"] + (0 * self.net.head.weight).sum().sqrt()}


def test_steps_that_the_scaler_skips_again_and_again_are_no_training(tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    monkeypatch.setattr("pmm_ray.training._precision", lambda team, amp: (torch.bfloat16, scaler))
    with pytest.raises(UserError, match=r"^train\.lr: gradients are not finite, so epoch 2 taught nothing"):
        train(Steep(), examples_in(tmp_path), plan=PLAN, team=LocalTeam(), out=tmp_path)


def test_batch_norm_of_one_image_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^train\.batch_size=1: give at least 2"):
        train(objective_for(LocalTeam()), examples_in(tmp_path), plan=replace(PLAN, batch_size=1), team=LocalTeam(),
              out=tmp_path)  # fmt: skip


def test_new_layers_learn_faster_and_only_matrices_decay():
    objective = Line()
    optimizer = make_optimizer(objective, PLAN)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    net = objective.net
    assert found[id(net.backbone.weight)] == (0.01, 1e-3)
    assert found[id(net.head.weight)] == (pytest.approx(0.1), 1e-3)
    assert found[id(net.head.bias)] == (pytest.approx(0.1), 0.0)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    other = make_optimizer(objective, replace(PLAN, momentum=0.5))
    assert {group["momentum"] for group in other.param_groups} == {0.5}
    adamw = make_optimizer(objective, replace(PLAN, optimizer="adamw"))
    assert isinstance(adamw, torch.optim.AdamW)
    set_rates(adamw, 0.5)
    assert [group["lr"] for group in adamw.param_groups] == [pytest.approx(v) for v in (0.005, 0.05, 0.05)]


def test_frozen_parameters_are_not_given_to_the_optimizer():
    objective = Line()
    objective.net.backbone.requires_grad_(False)
    groups = make_optimizer(objective, PLAN).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_rate_falls_from_1_by_the_power_after_a_linear_rise():
    assert [rate(step, steps=4, power=1.0) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert rate(50, steps=100, power=0.9) == pytest.approx(0.5**0.9)
    assert rate(0, steps=100, power=1.0, warmup=2) == 0.5 and rate(1, steps=100, power=1.0, warmup=2) == 0.99


def test_a_global_mean_of_nothing_is_0_with_gradient_0():
    values = torch.zeros(3, requires_grad=True)
    mean = global_mean(values, count=0, team=LocalTeam())
    mean.backward()
    assert mean.item() == 0 and values.grad is not None
