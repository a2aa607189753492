"""What a sweep's tables show."""

from pathlib import Path

import pytest

from pmm_ray.artefacts import Store
from pmm_ray.config import Config, SweepConfig
from pmm_ray.data.dataset import Classes, Dataset, Photo, Photos, Split, Truth
from pmm_ray.pipeline import Failure
from pmm_ray.search import results
from pmm_ray.search.conduct import Sweep
from pmm_ray.search.record import Record, Tried
from pmm_ray.search.space import parse


def tried(number: int, **figures: float) -> Tried:
    values = {"pus.beta": 0.1 * number}
    return Tried(number, values, default=False, ending="done", score=None, share=1.0, seconds=1.0, figures=figures)


def test_a_figure_has_a_column_if_it_tells_settings_apart_and_not_as_another_does():
    one = tried(1, score=0.4, frequent=0.4, masks=0.5, val=0.1, val_frequent=0.1, images=3)
    two = tried(2, score=0.3, frequent=0.3, masks=0.5, val=0.2, val_frequent=0.2, images=3)
    stopped = tried(3, masks=0.5, images=2)
    assert results._telling([one, two, stopped], score="score") == ["val"]
    # alone it is compared with nothing
    assert results._telling([one], score="score") == ["masks", "val"]


def masks_sweep(folder: Path, metric: str, *, scored: int) -> tuple[Sweep, Record]:
    """One of 4 photos, 3 of them with ground truth, of which the better of two settings scored so many."""
    classes = Classes(("background", "cat"), ((0, 0, 0), (128, 0, 0)))
    photos = Photos(tuple(Photo(name, f"{name}.jpg", (1,)) for name in "abcd"), classes, "photos")
    truth = Truth({name: f"{name}.png" for name in "abc"}, "truth", "truth")
    space = parse({"masks.s": {"uniform": [0, 1]}}, Config(), trial="masks")
    data = Dataset("four", classes, Split("train", photos, truth))
    made = Sweep(Config(), SweepConfig(metric=metric), space, data, Store(folder / "store"))
    record = Record(made.folder)
    for number in (1, 2, 3):
        identity = {"settings": {"s": number}, "inputs": {}, "seed": None}
        artefact = made.store.artefact("score_masks", **identity)
        bad = [["a", f"a.jpg: broken {number}"]] if number > 1 else []
        facts = {"images": 4 - len(bad), "scored": scored, "failed": bad}
        made.store.finish(artefact, **identity, facts=facts, seconds=1)
        score = 0.1 * number
        record.add(Tried(number, {"masks.s": score}, False, "done", score, 1.0, 1.0, {}, None, str(artefact.path)))
    return made, record


@pytest.mark.parametrize(("metric", "said"), [("masks", "on 2 images of train"), ("contrast", "of 3 training images")])
def test_the_protocol_counts_the_photos_that_the_best_setting_was_scored_on(tmp_path, metric, said):
    sweep, record = masks_sweep(tmp_path, metric, scored=2)
    assert said in results.protocol(sweep, record)


def test_photos_that_the_best_setting_failed_on_are_told(tmp_path):
    _, record = masks_sweep(tmp_path, "masks", scored=2)
    assert results.left_out(record) == [Failure("setting 3", "a", "a.jpg: broken 3")]


def test_settings_without_a_photo_compared_with_ground_truth_say_nothing_of_how_much_a_choice_needs(tmp_path):
    assert results._choices(*masks_sweep(tmp_path, "contrast", scored=0)) == []
