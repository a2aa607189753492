"""What the programs tell the user."""

from pmm_ray.command import tell_failures, tell_problems
from pmm_ray.data.problems import Problems
from pmm_ray.pipeline import Failure


def test_all_that_was_left_out_is_counted_though_not_all_is_listed(capsys):
    problems = Problems()
    for number in range(100):
        problems.add(f"image{number}", "has no label; give it one", group="images have no label")
    problems.add("x", "is not there; restore it", group="images are not there")
    tell_problems(problems.listed())
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "101 entries of the data set were left out:" and len(told) == 2 + 20 + 1 + 1
    assert "  80 more: images have no label, like image0" in told
    tell_failures([Failure("masks", str(number), "truncated") for number in range(2500)])
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "2500 images were left out:" and told[-1] == "  ... and 2450 more, in the stages' manifest.json"
