"""The driver's side of a sweep, without Ray: what is asked for, recorded and told."""

from __future__ import annotations

from pathlib import Path

from pmm_ray.cluster.search import Report
from pmm_ray.search.proposals import Listed
from pmm_ray.search.record import Record
from pmm_ray.search.trials import halts
from pmm_ray.search.watch import Watch
from pmm_ray.tracking import RunHandle

DEFAULT = {"masks.s": 0.3}


class Bar:
    def __init__(self):
        self.done, self.note = 0, ""

    def advance(self, n=1, note=""):
        self.done, self.note = self.done + n, note


class Listening(Listed):
    """Proposes 0.3, 0.1, 0.2 ... and remembers what it was told."""

    def __init__(self, *more):
        super().__init__(iter([DEFAULT, *({"masks.s": value} for value in more)]))
        self.told = []

    def tell(self, values, score):
        self.told.append((values["masks.s"], score))


def watch(folder: Path, source: Listening, *, count: int = 10, bar: Bar | None = None) -> tuple[Watch, Record]:
    record = Record(folder)
    made = Watch(record, source, default=DEFAULT, count=count, steps=4, parent=RunHandle(), bar=bar or Bar())
    return made, record


def run(made: Watch, score: float | None, *, steps: int = 4, error: str | None = None) -> dict | None:
    """One trial from beginning to end; its values."""
    found = made.next()
    if found is None:
        return None
    name, (values, _) = found
    if score is not None:
        made.heard(name, Report(steps, score, {"images": 7.0}, "/place"))
    made.ended(name, "failed" if error else "done" if steps == 4 else "stopped", error)
    return values


def test_each_ending_is_recorded_with_its_score_and_the_best_is_of_complete_ones(tmp_path):
    bar = Bar()
    made, record = watch(tmp_path, Listening(0.1, 0.2, 0.4), bar=bar)
    run(made, 0.5)
    run(made, 0.9, steps=1)
    run(made, None, error="no luck")
    run(made, 0.6)
    assert made.next() is None
    found = [(one.number, one.ending, one.score, one.share, one.default, one.error) for one in record.all]
    assert found == [
        (1, "done", 0.5, 1.0, True, None),
        (2, "stopped", 0.9, 0.25, False, None),
        (3, "failed", None, 0.0, False, "no luck"),
        (4, "done", 0.6, 1.0, False, None),
    ]
    assert record.best().values == {"masks.s": 0.4}
    assert record.best().artefact == "/place"
    assert (bar.done, bar.note) == (4, "best 60.00")


def test_no_more_settings_than_asked_for_are_tried(tmp_path):
    made, _ = watch(tmp_path, Listening(0.1, 0.2), count=2)
    assert run(made, 0.5) == DEFAULT
    assert run(made, 0.5) == {"masks.s": 0.1}
    assert made.next() is None


def test_a_second_run_tells_what_is_known_repeats_nothing_and_tries_failed_ones_again(tmp_path):
    made, _ = watch(tmp_path, Listening(0.1, 0.2, 0.4))
    run(made, 0.5)
    run(made, None, error="no luck")
    run(made, 0.7, steps=2)
    source = Listening(0.1, 0.2, 0.4)
    made, record = watch(tmp_path, source)
    assert source.told == [(0.3, 0.5), (0.2, 0.7)]
    assert run(made, 0.8) == {"masks.s": 0.1}
    assert run(made, 0.6) == {"masks.s": 0.4}
    assert made.next() is None
    assert [(one.number, one.score) for one in record.all] == [(1, 0.5), (2, 0.8), (3, 0.7), (4, 0.6)]


def test_what_is_under_way_when_a_run_ends_is_tried_in_the_next(tmp_path):
    made, _ = watch(tmp_path, Listening(0.1, 0.2))
    run(made, 0.5)
    made.next()
    name, _ = made.next()
    made.ended(name, "failed", "no luck")
    made.interrupt(KeyboardInterrupt())
    again, record = watch(tmp_path, Listening(0.1, 0.2))
    assert run(again, 0.4) == {"masks.s": 0.2}
    assert run(again, 0.6) == {"masks.s": 0.1}
    assert [(one.number, one.score) for one in record.all] == [(1, 0.5), (2, 0.6), (3, 0.4)]


def test_a_setting_that_is_proposed_twice_is_tried_once_and_its_score_told_again(tmp_path):
    source = Listening(0.1, 0.1, 0.3, 0.2)
    made, _ = watch(tmp_path, source)
    tried = [run(made, score) for score in (0.5, 0.6, 0.7)]
    assert [values["masks.s"] for values in tried] == [0.3, 0.1, 0.2]
    assert source.told == [(0.3, 0.5), (0.1, 0.6), (0.1, 0.6), (0.3, 0.5), (0.2, 0.7)]


def test_a_list_goes_on_after_more_settings_than_are_looked_at_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr("pmm_ray.search.watch._REPEATS", 2)
    values = [0.1, 0.2, 0.4, 0.5, 0.6]
    made, _ = watch(tmp_path, Listening(*values), count=5)
    while run(made, 0.5):
        pass
    made, _ = watch(tmp_path, Listening(*values))
    assert run(made, 0.5) == {"masks.s": 0.6}


def test_halts_are_even_and_the_last_is_the_end():
    assert halts(16, 4) == [4, 8, 12, 16]
    assert halts(3, 16) == [1, 2, 3]
    assert halts(10, 4) == [2, 5, 8, 10]
