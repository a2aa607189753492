from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

from pmm_ray.data.fingerprint import ContentHashes, fingerprint
from pmm_ray.errors import UserError


def settle(*paths):
    """Give files an age at which their hash is remembered."""
    for path in paths:
        os.utime(path, (time.time() - 100, time.time() - 100))


def test_files_are_hashed_by_content(tmp_path):
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in "abc"]
    found = ContentHashes(tmp_path / "memory.json").of(paths)
    assert found[paths[0]] == found[paths[1]] == hashlib.sha256(b"x").hexdigest() != found[paths[2]]


def test_a_remembered_file_is_not_read_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    settle(path)
    memory = tmp_path / "store" / "memory.json"
    first = ContentHashes(memory).of([str(path)])
    changed_time = path.stat()
    path.write_bytes(b"y")
    os.utime(path, ns=(changed_time.st_atime_ns, changed_time.st_mtime_ns))
    assert ContentHashes(memory).of([str(path)]) == first


def test_another_size_or_time_means_reading_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    settle(path)
    memory = tmp_path / "memory.json"
    first = ContentHashes(memory).of([str(path)])
    path.write_bytes(b"y")
    assert ContentHashes(memory).of([str(path)]) != first


def test_a_file_changed_just_now_is_not_remembered(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    memory = tmp_path / "memory.json"
    ContentHashes(memory).of([str(path)])
    assert not memory.exists()


def test_a_broken_memory_is_only_slower(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    settle(path)
    memory = tmp_path / "memory.json"
    for broken in ("", "[1]", '{"a": 1}', '{"a": [1'):
        memory.write_text(broken)
        assert ContentHashes(memory).of([str(path)])[str(path)] == hashlib.sha256(b"x").hexdigest()
    assert str(path) in json.loads(memory.read_text())


def test_a_memory_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    settle(path)
    with pytest.raises(UserError, match=rf"^{path}/memory\.json: cannot be written to \(File exists\); make room"):
        ContentHashes(path / "memory.json").of([str(path)])


def test_what_another_run_remembered_meanwhile_is_kept(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"x")
    settle(*paths)
    one, two = ContentHashes(tmp_path / "memory.json"), ContentHashes(tmp_path / "memory.json")
    one.of([str(paths[0])])
    two.of([str(paths[1])])
    assert set(json.loads((tmp_path / "memory.json").read_text())) == {str(path) for path in paths}


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    found = ContentHashes(tmp_path / "memory.json").of([str(tmp_path / "a"), str(tmp_path / "absent")])
    assert isinstance(found[str(tmp_path / "absent")], FileNotFoundError)
    assert isinstance(found[str(tmp_path / "a")], str)


def test_a_fingerprint_follows_its_parts():
    assert fingerprint("a", [1, 2]) == fingerprint("a", (1, 2)) != fingerprint("a", [2, 1])
