"""Settings as trials of Ray Tune."""

import os
import signal
import sys
from dataclasses import dataclass, field

import pytest
from ray import cloudpickle

from pmm_ray.cluster.search import Asha, Report, search

pytestmark = [
    pytest.mark.ray,
    # noise of Tune's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class AcceleratorError(RuntimeError):
    """Known by its name, as torch's is."""


class Counting:
    """Scores setting * step; 'odd' settings fail in the way they say at their second step."""

    def __init__(self, setting):
        self.setting, self.steps = setting, 0

    def step(self):
        self.steps += 1
        if self.steps == 2 and self.setting == "raises":
            raise ValueError("no luck\nat all")
        if self.steps == 2 and self.setting == "breaks":
            raise AcceleratorError("illegal access")
        if self.steps == 2 and self.setting == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        score = self.setting if isinstance(self.setting, float) else 0.0
        return Report(self.steps, score * self.steps, {"pid": float(os.getpid())}, "/here")

    def close(self):
        pass


@dataclass
class Listener:
    settings: list
    heard_of: dict = field(default_factory=dict)
    endings: dict = field(default_factory=dict)

    def next(self):
        if not self.settings:
            return None
        setting = self.settings.pop(0)
        return str(setting), setting

    def heard(self, name, report):
        self.heard_of.setdefault(name, []).append(report)

    def ended(self, name, ending, error):
        self.endings[name] = (ending, error)


def tried(settings, folder, *, asha=None, steps=4, concurrent=2) -> Listener:
    listener = Listener(list(settings))
    search(Counting, listener, steps=steps, concurrent=concurrent, cpus=0.01, gpus=0, asha=asha, scratch=folder / "ray")
    return listener


def test_every_setting_reports_each_step_and_failures_do_not_end_the_others(ray_session, tmp_path):
    found = tried([0.1, "raises", 0.2, "dies", 0.3], tmp_path)
    for setting in ("0.1", "0.2", "0.3"):
        assert [report.steps for report in found.heard_of[setting]] == [1, 2, 3, 4]
        assert found.heard_of[setting][-1].score == pytest.approx(4 * float(setting))
        assert found.heard_of[setting][-1].artefact == "/here"
        assert found.endings[setting] == ("done", None)
    assert found.endings["raises"] == ("failed", "no luck at all")
    ending, error = found.endings["dies"]
    assert ending == "failed"
    assert error
    assert not (tmp_path / "ray").exists()


def test_no_setting_is_tried_in_a_process_whose_gpu_failed(ray_session, tmp_path):
    found = tried(["breaks", 0.1, 0.2], tmp_path, concurrent=1)
    broken = found.heard_of["breaks"][0].figures["pid"]
    assert found.endings["breaks"][0] == "failed"
    assert all(found.endings[setting] == ("done", None) for setting in ("0.1", "0.2"))
    assert broken not in [report.figures["pid"] for setting in ("0.1", "0.2") for report in found.heard_of[setting]]


def test_asha_stops_the_worse_settings_early(ray_session, tmp_path):
    # One at a time, the best first: of those that follow none is among the best third at the first halt.
    found = tried([0.9, 0.1, 0.2, 0.3], tmp_path, asha=Asha(grace=2, reduction=3), steps=8, concurrent=1)
    assert found.endings["0.9"] == ("done", None)
    assert {name: ending for name, (ending, _) in found.endings.items() if name != "0.9"} == dict.fromkeys(
        ("0.1", "0.2", "0.3"), "stopped"
    )
    assert all(found.heard_of[name][-1].steps < 8 for name in ("0.1", "0.2", "0.3"))
