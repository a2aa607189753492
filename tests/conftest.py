"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_ray.places import Remote

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
    """One uninterrupted tiny run that others are compared with: its folder and its output.

    Two workers train; all else is done in this process, where others have actors on one node or several.
    """
    from tiny_run import run_here, tiny

    folder = tmp_path_factory.mktemp("run")
    return folder, run_here(tiny(folder, "cluster.infer_workers=0", "cluster.mask_workers=0"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray of two CPUs for all tests that need one, in a short temporary folder of its own."""
    import ray

    folder = tempfile.mkdtemp(prefix="pr", dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """An S3-compatible server on loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """An empty bucket of its own on that server, which this process and its children find by their environment."""
    given = {"AWS_ENDPOINT_URL": s3_address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (given | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    place = Remote(f"s3://test-{uuid.uuid4().hex[:12]}")
    place.filesystem.mkdir(place.key)
    return place


@pytest.fixture(params=["disk", "s3"])
def anywhere(request: pytest.FixtureRequest) -> Path | Remote:
    """An empty folder on a disk; then a place in object storage."""
    if request.param == "disk":
        return request.getfixturevalue("tmp_path")
    return request.getfixturevalue("bucket") / "some folder"
