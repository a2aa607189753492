"""What a sweep's tables show."""

from pmm_ray.search.record import Tried
from pmm_ray.search.results import _telling


def tried(number: int, **figures: float) -> Tried:
    values = {"pus.beta": 0.1 * number}
    return Tried(number, values, default=False, ending="done", score=None, share=1.0, seconds=1.0, figures=figures)


def test_a_figure_has_a_column_if_it_tells_settings_apart_and_not_as_another_does():
    one = tried(1, score=0.4, frequent=0.4, masks=0.5, val=0.1, val_frequent=0.1, images=3)
    two = tried(2, score=0.3, frequent=0.3, masks=0.5, val=0.2, val_frequent=0.2, images=3)
    stopped = tried(3, masks=0.5, images=2)
    assert _telling([one, two, stopped], score="score") == ["val"]
    # alone it is compared with nothing
    assert _telling([one], score="score") == ["masks", "val"]
