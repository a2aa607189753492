"""What a person sees of a run in MLflow's pages, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest
from PIL import Image

from pmm_ray.tracking import RunHandle, Tracker, open_tracker

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A server and a browser that share two cores with other tests.
PATIENCE = 60_000
# As wide as what MLflow shows in charts.
WIDTH = 256


@dataclass(frozen=True)
class Shown:
    """A run of two cycles, and the address of the server that shows it."""

    address: str
    experiment: str
    run: RunHandle
    cycles: list[RunHandle]
    overlays: RunHandle


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    store = tmp_path_factory.mktemp("page")
    tracker = open_tracker(enabled=True, uri=None, experiment="pages", store=store)
    run, cycles, overlays = record(tracker, store)
    with served(tracker.uri, store) as address:
        yield Shown(address, tracker.experiment_id, run, cycles, overlays)


def record(tracker: Tracker, folder: Path) -> tuple[RunHandle, list[RunHandle], RunHandle]:
    """A run as the recipes write it: cycles with scores and masks, and overlays in the first."""
    cycles = []
    with tracker.run("tiny", params={"masks": {"alpha": 2}}) as run:
        for number, (miou, colour) in enumerate([(0.4312, (200, 0, 0)), (0.4567, (0, 0, 200))]):
            picture = folder / f"{number}.png"
            Image.new("RGB", (WIDTH, 160), colour).save(picture)
            with run.child(f"cycle {number}", tags={"cycle": number, "stage": "cycle"}) as cycle:
                cycle.tag("row", f"cycle {number}")
                cycle.metrics({"mIoU/val": miou, "mIoU/train masks": miou + 0.05})
                cycle.panel(picture, "masks/horse (1)")
                cycle.panel(picture, "masks/horse (1)")
                cycles.append(cycle)
        with cycles[0].child("overlays", tags={"stage": "draw_overlays"}) as overlays:
            overlays.picture(picture, "overlays/contact.png")
    return run, cycles, overlays


@contextmanager
def served(uri: str, folder: Path) -> Iterator[str]:
    """MLflow's server on loopback; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_it_answers(f"{address}/health", server, folder / "server.log")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def wait_until_it_answers(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(log.read_text())


@pytest.fixture
def page(shown: Shown):
    """A tab of a fresh browser that can reach the server and nothing else."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which root, as in a container, cannot have.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tabs = browser.new_context(viewport={"width": 1400, "height": 2400})
        tabs.set_default_timeout(PATIENCE)
        tabs.route(lambda url: not url.startswith(shown.address), lambda route: route.abort())
        yield tabs.new_page()
        browser.close()


def wait_for_pictures(page, count: int) -> None:
    """Until the browser has loaded so many pictures of the width of those recorded."""
    loaded = "[...document.images].filter(picture => picture.complete && picture.naturalWidth === width).length"
    page.wait_for_function(f"([width, count]) => {loaded} >= count", arg=[WIDTH, count])


def test_the_runs_page_leads_to_its_cycles_side_by_side_with_scores_and_masks(shown, page):
    page.goto(f"{shown.address}/#/experiments/{shown.experiment}/runs/{shown.run.run_id}")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="The results side by side").click()
    page = opened.value
    for cycle in ("cycle 0", "cycle 1"):
        page.get_by_role("link", name=cycle, exact=True).wait_for()
    for chart in ("mIoU/val", "mIoU/train masks", "masks/horse _1_"):
        page.get_by_text(chart, exact=True).first.wait_for()
    assert page.get_by_role("link", name="tiny", exact=True).count() == 0
    wait_for_pictures(page, 2)


def test_the_cycles_are_columns_of_mlflows_page_of_comparison(shown, page):
    ids = json.dumps([cycle.run_id for cycle in shown.cycles])
    page.goto(f'{shown.address}/#/compare-runs?runs={ids}&experiments=["{shown.experiment}"]')
    page.get_by_role("heading", name="Comparing 2 Runs").wait_for()
    for text in ("cycle 0", "cycle 1", "mIoU/val", "mIoU/train masks", "0.4312", "0.4567"):
        page.get_by_text(text).first.wait_for()


def test_an_overlay_is_shown_among_the_runs_artefacts(shown, page):
    run = f"{shown.address}/#/experiments/{shown.experiment}/runs/{shown.overlays.run_id}"
    page.goto(f"{run}/artifacts/overlays/contact.png")
    page.get_by_text("contact.png").first.wait_for()
    wait_for_pictures(page, 1)
