from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmm_ray.data.dataset import Photo
from pmm_ray.data.loading import Draw, Examples, GlobalBatches, WithLabels, WithMasks, loader
from pmm_ray.data.transforms import Augment
from pmm_ray.errors import SettingError, UserError
from pmm_ray.places import StorageError

AUGMENT = Augment(crop=32, resize=(0.9, 1.4), flip=True, jitter=0.2, fill=(0, 0, 0))


def photos_in(folder: Path, count: int = 5) -> list[Photo]:
    noise = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return [Photo(str(index), str(folder / f"{index}.png"), (1 + index % 3,)) for index in range(count)]


def labelled(folder: Path, photos: list[Photo]) -> Examples:
    return Examples(photos, WithLabels(AUGMENT, 3), seed=0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_slices_make_up_the_global_batch(workers):
    whole = GlobalBatches(count=10, batch_size=4, seed=3)
    shares = [list(GlobalBatches(count=10, batch_size=4, seed=3, rank=k, workers=workers)) for k in range(workers)]
    for step, batch in enumerate(whole.whole()):
        assert sorted(batch) == sorted(draw for share in shares for draw in share[step])


def test_every_image_is_seen_every_batch_is_full_and_epochs_differ():
    batches = GlobalBatches(count=10, batch_size=4, seed=3)
    first = batches.whole()
    assert len(first) == len(batches) == 3 and {len(batch) for batch in first} == {4}
    assert {draw.photo for batch in first for draw in batch} == set(range(10))
    # filled up with the epoch's first images, each at a place of its own
    photos, places = ([getattr(draw, name) for batch in first for draw in batch] for name in ("photo", "position"))
    assert photos[10:] == photos[:2] and places == [*range(12)]
    batches.epoch = 1
    assert [draw.photo for draw in batches.whole()[0]] != [draw.photo for draw in first[0]]


def test_fewer_images_than_a_batch_are_drawn_repeatedly():
    assert [len(batch) for batch in GlobalBatches(count=2, batch_size=5, seed=0).whole()] == [5]


def test_impossible_batches_are_named():
    with pytest.raises(UserError, match="no image to train on"):
        GlobalBatches(count=0, batch_size=4, seed=0)
    with pytest.raises(UserError, match=r"^train\.batch_size=2: .* 3 training workers$"):
        GlobalBatches(count=9, batch_size=2, seed=0, workers=3)


def test_augmentation_follows_seed_epoch_and_position_only(tmp_path):
    examples = labelled(tmp_path, photos_in(tmp_path))
    draw = Draw(epoch=1, position=2, photo=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = examples[draw].image
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own chance is untouched
    torch.manual_seed(2)
    assert torch.equal(examples[draw].image, first)
    assert not torch.equal(examples[draw._replace(epoch=2)].image, first)
    assert not torch.equal(examples[draw._replace(position=4)].image, first)


def test_an_unreadable_image_is_replaced_by_the_next_and_told_of(tmp_path):
    photos = photos_in(tmp_path)
    Path(photos[4].image).write_bytes(b"no image")
    example = labelled(tmp_path, photos)[Draw(0, 0, 4)]
    assert example.target[0].tolist() == [1, 0, 0]  # photo 0
    ((name, why),) = example.problems
    assert name == "4" and "4.png" in why
    with pytest.raises(UserError, match="none of the 1 training images"):
        labelled(tmp_path, photos[4:])[Draw(0, 0, 0)]


@pytest.mark.parametrize("sides", [(2, 41), (41, 2)])
def test_a_strip_is_replaced_by_the_next_photo_and_told_of(tmp_path, sides):
    photos, make = photos_in(tmp_path), WithMasks(AUGMENT, {str(k): tmp_path / f"mask{k}.png" for k in range(5)}, 3)
    for number, size in enumerate([(40, 50), (2, 40), (2, 40), (2, 40), sides]):
        Image.new("RGB", size[::-1]).save(photos[number].image)
        Image.new("L", size[::-1]).save(tmp_path / f"mask{number}.png")
    for examples in (labelled(tmp_path, photos), Examples(photos, make, seed=0)):
        assert not examples[Draw(0, 0, 1)].problems
        ((name, why),) = examples[Draw(0, 0, 4)].problems
        assert name == "4" and f"4.png: {sides[1]} x {sides[0]} pixels" in why and "too narrow" in why


@pytest.mark.parametrize("kind", [UserError, SettingError, StorageError])
@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_meant_for_the_user_comes_out_of_a_loader_as_it_is(tmp_path, processes, kind):
    def make(photo):
        raise kind("s3://bucket: no answer; look at: the name")

    photos, batches = photos_in(tmp_path, 1), GlobalBatches(count=1, batch_size=1, seed=0)
    with pytest.raises(kind, match=r"^s3://bucket: no answer; look at: the name$") as caught:
        list(loader(Examples(photos, make, seed=0), batches, processes=processes, pin=False))
    assert type(caught.value) is kind


def test_masks_of_another_size_or_with_unknown_ids_are_told_of(tmp_path):
    photos = photos_in(tmp_path, 3)
    for index, (size, value) in enumerate([((40, 50), 2), ((20, 50), 1), ((40, 50), 9)]):
        Image.fromarray(np.full(size, value, np.uint8)).save(tmp_path / f"mask{index}.png")
    masks = {str(index): tmp_path / f"mask{index}.png" for index in range(3)}
    example = Examples(photos, WithMasks(AUGMENT, masks, num_classes=4), seed=0)[Draw(0, 0, 1)]
    assert set(example.target.unique().tolist()) <= {2, 255} and example.target.dtype == torch.int64
    assert [name for name, _ in example.problems] == ["1", "2"]
    assert "id 9, but the largest class is 3" in example.problems[1][1]


def test_a_loader_gives_the_same_batches_with_and_without_processes(tmp_path):
    photos = photos_in(tmp_path)
    found = []
    for processes in (0, 1):
        batches = GlobalBatches(count=5, batch_size=2, seed=0)
        batches.epoch = 1
        found.append(list(loader(labelled(tmp_path, photos), batches, processes=processes, pin=False)))
    assert len(found[0]) == 3
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.images, other.images)
        assert all(torch.equal(a, b) for a, b in zip(one.targets, other.targets, strict=True))


@pytest.mark.parametrize("of_a_rough_mask", [False, True])
def test_the_area_of_a_crop_is_where_it_shows_the_photo_and_not_what_was_filled_in(tmp_path, of_a_rough_mask):
    photos = photos_in(tmp_path, 4)
    augment = Augment(crop=32, resize=(0.5, 0.9), flip=True, jitter=0.0, fill=(0, 250, 0))
    rough = {"0": tmp_path / "rough.png"} if of_a_rough_mask else {}
    Image.fromarray(np.ones((40, 50), np.uint8)).save(tmp_path / "rough.png")
    examples = Examples(photos, WithLabels(augment, 3, rough_masks=rough, share=0.1), seed=0)
    batches = GlobalBatches(count=4, batch_size=4, seed=0)
    (batch,) = loader(examples, batches, processes=0, pin=False)
    labels, area = batch.targets
    assert labels.shape == (4, 3) and labels.sum() == 4 and area.shape == (4, 32, 32) and area.dtype == torch.bool
    filled = (batch.images == torch.tensor([0, 250, 0])[:, None, None]).all(dim=1)
    assert torch.equal(filled, ~area) and 0 < area.float().mean() < 1


def test_a_crop_has_the_labels_that_it_deserves_by_the_photos_rough_mask_and_the_share(tmp_path):
    (photo,) = photos_in(tmp_path, 1)
    some = np.zeros((40, 50), np.uint8)
    some[::3] = 1  # a third of any crop
    Image.fromarray(some).save(tmp_path / "rough.png")
    augment = Augment(crop=32, resize=(5.0, 5.0), flip=False, jitter=0.0, fill=(0, 0, 0))
    labels = [
        WithLabels(augment, 3, rough_masks={"0": tmp_path / "rough.png"}, share=share)(photo)[1][0].tolist()
        for share in (0.1, 0.6)
    ]
    assert labels == [[1, 0, 0], [0, 0, 0]]


def test_an_id_just_beyond_the_last_class_is_told_of(tmp_path):
    photos = photos_in(tmp_path, 2)
    for index, value in enumerate((4, 3)):
        Image.fromarray(np.full((40, 50), value, np.uint8)).save(tmp_path / f"mask{index}.png")
    masks = {str(index): tmp_path / f"mask{index}.png" for index in range(2)}
    example = Examples(photos, WithMasks(AUGMENT, masks, num_classes=4), seed=0)[Draw(0, 0, 0)]
    assert set(example.target.unique().tolist()) <= {3, 255} and [name for name, _ in example.problems] == ["0"]


def test_reading_images_leaves_the_generators_of_gpus_alone(tmp_path, monkeypatch):
    seeded = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    labelled(tmp_path, photos_in(tmp_path))[Draw(0, 0, 0)]
    assert not seeded and torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_order_and_other_crops(tmp_path):
    photos = photos_in(tmp_path)
    orders = [[draw.photo for draw in GlobalBatches(count=9, batch_size=9, seed=s).whole()[0]] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    crops = [Examples(photos, WithLabels(AUGMENT, 3), seed=seed)[Draw(0, 0, 0)].image for seed in (0, 0, 1)]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])
