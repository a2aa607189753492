"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PMM_RAY_SHARED", ROOT.parent / "shared"))
    if not (folder / "minivoc").is_dir():
        pytest.skip(f"no real photos at {folder} (set PMM_RAY_SHARED)")
    return folder


@pytest.fixture(scope="session")
def finished(ray_session, tmp_path_factory) -> tuple[Path, str]:
    """One uninterrupted tiny run that others are compared with, on two training workers: its folder and its output."""
    from tiny_run import run_here, tiny

    folder = tmp_path_factory.mktemp("run")
    return folder, run_here(tiny(folder))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray of two CPUs for all tests that need one, in a short temporary folder of its own."""
    import ray

    folder = tempfile.mkdtemp(prefix="pr", dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
