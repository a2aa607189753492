"""What the programs tell the user."""

import errno
import signal

import pytest

from pmm_ray.artefacts import Artefact
from pmm_ray.command import run_command, tell_failures, tell_network, tell_notes, tell_problems
from pmm_ray.config import PredictConfig
from pmm_ray.data.problems import Problems
from pmm_ray.pipeline import Failure, Network


def test_all_that_was_left_out_is_counted_though_not_all_is_listed(capsys):
    problems = Problems()
    for number in range(100):
        problems.add(f"image{number}", "has no label; give it one", group="images have no label")
    problems.add("x", "is not there; restore it", group="images are not there")
    tell_problems(problems.listed())
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "101 entries of the data set were left out:" and len(told) == 2 + 20 + 1 + 1
    assert "  80 more: images have no label, like image0" in told
    stages = ("CAMs", "masks")
    tell_failures([Failure(stage, str(number), "truncated") for number in range(2500) for stage in stages])
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "2500 images were left out:" and told[2] == "  0 (CAMs, masks): truncated"
    assert told[-1] == "  ... and 2450 more, in the stages' manifest.json"


def test_what_may_be_wrong_is_told_apart_from_what_was_left_out(capsys):
    notes = Problems()
    tell_notes(notes.listed())
    assert capsys.readouterr().out == ""
    notes.add("train masks", "hold nothing but 0 and 255", group="masks")
    tell_notes(notes.listed())
    told = capsys.readouterr().out.splitlines()
    assert "nothing was left out" in told[1] and told[2:] == ["  train masks: hold nothing but 0 and 255"]


@pytest.mark.parametrize(
    ("side", "told"), [(640, ""), (400, " predict.max_short_side=400"), (None, " predict.max_short_side=null")]
)
def test_a_network_is_applied_to_photos_with_the_settings_it_was_scored_with(side, told, capsys, tmp_path):
    predict = PredictConfig(scales=(1.0,), max_short_side=side)
    tell_network(Network("segmentation", Artefact("train_seg", "x", tmp_path), predict))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(f"PHOTOS OUT 'predict.scales=[1.0]'{told}")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "Error writing bytes"), OSError(errno.EROFS, "no", "/data/x")])
def test_a_full_disk_is_one_line_wherever_it_shows(error, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def work(*_):
        raise error

    assert run_command([], work, program="p", usage="p", keys=str) == 1
    where, why = (error.filename or "the store"), {errno.ENOSPC: "No space left on device", errno.EROFS: "Read-only"}
    assert capsys.readouterr().err.startswith(f"error: {where}: {why[error.errno]}")


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def work(*_):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_command([], work, program="p", usage="p", keys=str)
