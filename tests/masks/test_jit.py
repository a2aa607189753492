from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import pytest

from pmm_ray.masks import jit as jit_module
from pmm_ray.masks.jit import jit, one_process_at_a_time

PACKAGE = Path(jit_module.__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Home and temporary folder of a user of our own; returns what `cache_folder` says there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return jit_module.cache_folder.__wrapped__


def no_folder(path):
    """Where nothing can be written, even by root."""
    path.write_text("")
    return path


def test_the_cache_is_named_after_every_file_of_the_engine(folder, tmp_path, monkeypatch):
    engine = tmp_path / "engine"
    shutil.copytree(PACKAGE / "masks", engine)
    monkeypatch.setattr(jit_module, "__file__", str(engine / "jit.py"))
    names = [folder().name]
    for name in ("jit", "vectors", "lattice", "meanfield"):
        path = engine / f"{name}.py"
        path.write_text(path.read_text() + "\n")
        names.append(folder().name)
    assert len(set(names)) == 5
    (engine / "crf.py").write_text("")
    assert folder().name == names[-1]


def test_every_file_with_compiled_code_takes_part_in_the_name():
    users = {path.stem for path in (PACKAGE / "masks").glob("*.py") if "numba" in path.read_text().split('"""', 2)[2]}
    compiled = {stem for stem in users if "@jit" in (PACKAGE / "masks" / f"{stem}.py").read_text()}
    assert {"lattice", "meanfield"} <= compiled <= set(jit_module._ENGINE)


def test_the_cache_is_in_the_users_cache_folder(folder, tmp_path, monkeypatch):
    assert folder().parent == tmp_path / "home" / "pmm_ray"
    for unset in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", "") if unset == "" else monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
        assert folder().parent == tmp_path / "me" / ".cache" / "pmm_ray"


def test_the_cache_is_the_users_alone(folder):
    before = os.umask(0)
    try:
        found = folder()
    finally:
        os.umask(before)
    assert found.stat().st_mode & 0o777 == 0o700
    assert found.parent.stat().st_mode & 0o777 == 0o700


def test_where_the_home_cannot_be_written_the_cache_is_in_the_temporary_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_folder(tmp_path / "full")))
    assert folder().parent == tmp_path / "tmp" / f"pmm_ray-{os.getuid()}"


def test_where_the_user_has_no_home_the_cache_is_in_the_temporary_folder(folder, tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert folder().parent == tmp_path / "tmp" / f"pmm_ray-{os.getuid()}"


def test_a_folder_of_another_user_is_not_used(folder, monkeypatch):
    # what this process makes is not that user's
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert folder() is None


def test_a_cache_inside_another_users_folder_is_not_used(folder, tmp_path, monkeypatch):
    # who owns the folder around it could put another in its place
    root = folder().parent
    lstat = Path.lstat

    def with_another_owner(path):
        found = lstat(path)
        return os.stat_result([*found[:4], 12345, *found[5:]]) if path == root else found

    monkeypatch.setattr(Path, "lstat", with_another_owner)
    assert folder().parent == tmp_path / "tmp" / f"pmm_ray-{os.getuid()}"


def test_without_any_folder_functions_compile_all_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_folder(tmp_path / "full")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    assert folder() is None
    monkeypatch.setattr(jit_module, "cache_folder", folder)
    with one_process_at_a_time():
        assert jit(lambda x: x + 1)(2) == 3


def test_numbas_settings_are_as_before():
    before = numba.config.CACHE_DIR, numba.config.CACHE_LOCATOR_CLASSES
    jit(lambda x: x)
    assert before == (numba.config.CACHE_DIR, numba.config.CACHE_LOCATOR_CLASSES)


def test_compiling_is_for_one_process_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(jit_module, "cache_folder", folder)
    with (folder() / "lock").open("w") as other:
        with one_process_at_a_time(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_second_process_loads_what_the_first_compiled_even_from_another_copy_of_the_package(tmp_path):
    script = "from pmm_ray.masks.lattice import _slot as f; f(3, 60); print(sum(f.stats.cache_hits.values()))"

    def run(package):
        """(functions loaded, what the cache then holds, and since when)"""
        paths = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", script]
        ran = subprocess.run(command, env=environment, cwd=package.parent, capture_output=True, text=True, check=True)
        held = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        return int(ran.stdout), {path: path.stat().st_mtime_ns for path in held}

    loaded, first = run(PACKAGE)
    assert loaded == 0
    assert {path.suffix for path in first} == {".nbi", ".nbc"}
    assert run(PACKAGE) == (1, first)
    copy = shutil.copytree(PACKAGE, tmp_path / "job" / "pmm_ray", copy_function=shutil.copyfile)
    assert run(copy) == (1, first)
