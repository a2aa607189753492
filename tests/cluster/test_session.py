"""Starting, joining and leaving Ray."""

import os
import subprocess
import sys

import pytest

from pmm_ray.cluster.session import resources, session, started, use_gpu
from pmm_ray.config import ClusterConfig
from pmm_ray.errors import UserError


@pytest.mark.ray
def test_a_session_inside_a_running_one_uses_it_and_leaves_it_running(ray_session):
    with session(ClusterConfig(num_cpus=1)):
        assert resources().cpus == 2
    assert started()


@pytest.mark.ray
def test_gpus_are_used_where_there_are_some_and_demanded_only_on_request(ray_session):
    assert use_gpu("no") is False
    if resources().gpus:
        pytest.skip("this machine has a GPU")
    assert use_gpu("auto") is False
    with pytest.raises(UserError, match=r"cluster\.gpu=yes but Ray has no GPU"):
        use_gpu("yes")


LOCAL = """
import pathlib, ray
from pmm_ray.cluster.session import resources, session, started
from pmm_ray.config import ClusterConfig
with session(ClusterConfig(num_cpus=1)):
    assert resources().cpus == 1
    folder = pathlib.Path(ray._private.worker._global_node.get_session_dir_path()).parent
    assert folder.is_dir()
    assert len(str(folder)) < 40
    ray.get(ray.remote(lambda: print("a worker's line")).remote())
assert not started()
assert not folder.exists()
"""

JOIN = """
from pmm_ray.cluster.session import resources, session
from pmm_ray.config import ClusterConfig
with session(ClusterConfig(num_cpus=7)):
    print(f"{resources().cpus:g} CPUs")
"""

NOBODY = """
from pmm_ray.cluster.session import session
from pmm_ray.config import ClusterConfig
from pmm_ray.errors import UserError
try:
    with session(ClusterConfig(address="127.0.0.1:1")):
        pass
except UserError as error:
    print(error)
"""


REFUSED = """
import socket
from pmm_ray.cluster.session import session
from pmm_ray.config import ClusterConfig
from pmm_ray.errors import UserError
with socket.create_server(("127.0.0.1", 0)) as server:
    try:
        with session(ClusterConfig(address=f"127.0.0.1:{server.getsockname()[1]}")):
            pass
    except UserError as error:
        print(error)
"""


def python(script, **environment):
    kept = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name in kept}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**clean, **environment}
    )


@pytest.mark.ray
def test_a_new_local_session_is_silent_and_leaves_nothing_behind():
    ended = python(LOCAL)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr == ""


@pytest.mark.ray
def test_ray_address_of_the_environment_is_joined_as_in_a_submitted_job(ray_session):
    import ray

    ended = python(JOIN, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    assert ended.stdout == "2 CPUs\n", ended.stderr
    assert resources().cpus == 2


def test_an_address_where_nobody_answers_is_one_clear_line():
    ended = python(NOBODY)
    assert ended.stdout.startswith("no Ray at 127.0.0.1:1: "), ended.stderr
    assert ended.stdout.count("\n") == 1
    assert "cluster.address" in ended.stdout


def test_a_token_that_is_missing_is_one_clear_line(tmp_path):
    ended = python(REFUSED, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "absent"))
    assert ended.stdout.startswith("no Ray at 127.0.0.1:"), ended.stderr
    assert ended.stdout.count("\n") == 1
    assert "oken" in ended.stdout and "cluster.address" in ended.stdout
