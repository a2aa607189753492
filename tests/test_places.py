"""Paths on a disk and in object storage are used alike, and what is wrong with a store is one clear line."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from pathlib import Path

import pytest

from pmm_ray import places
from pmm_ray.command import open_store
from pmm_ray.config import Config
from pmm_ray.errors import UserError
from pmm_ray.files import atomic_path, local_file, readable, remove_tree, write_atomic
from pmm_ray.places import Remote, StorageError, below, place


@pytest.fixture
def fresh(bucket, monkeypatch):
    """A bucket, and a file system that reads the environment anew before and after the test."""
    forget = bucket.filesystem.clear_instance_cache
    forget()
    places._filesystem.cache_clear()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield bucket
    forget()
    places._filesystem.cache_clear()


def test_a_url_is_taken_apart_and_put_together_as_a_path_is():
    url = place("s3://bucket/runs//make_masks/0123/a b.png")
    assert str(url) == f"{url}" == "s3://bucket/runs/make_masks/0123/a b.png"
    assert (url.name, url.stem, url.suffix) == ("a b.png", "a b", ".png")
    assert str(url.parent / "x" / "y.csv") == "s3://bucket/runs/make_masks/0123/x/y.csv"
    assert str(url.with_suffix(".md")) == "s3://bucket/runs/make_masks/0123/a b.md"
    assert str(url.relative_to(place("s3://bucket/runs"))) == "make_masks/0123/a b.png"
    assert url.resolve() is url.absolute() is url
    assert pickle.loads(pickle.dumps(url)) == place(str(url)) == place(url) and len({url, place(str(url))}) == 1


def test_local_paths_stay_what_they_are():
    assert type(place("runs")) is type(place("file:///a/b")) is type(Path())
    assert place("file:///a/b") == Path("/a/b")
    assert below(Path("root"), "x/y") == Path("root/x/y") and below(Path("root"), "/x") == Path("/x")
    assert below(place("s3://bucket/set"), "/labels.csv") == Path("/labels.csv")
    assert below(Path("root"), "s3://bucket/labels.csv") == place("s3://bucket/labels.csv")


def test_a_tilde_is_the_users_home_and_never_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/runs") == place("file://~/runs") == below(Path("root"), "~/runs") == tmp_path / "runs"
    assert open_store(Config(store="~/runs")).root == (tmp_path / "runs").resolve()
    assert str(place("s3://bucket/~/runs")) == "s3://bucket/~/runs"
    assert place("~no such user.jpg") == Path("~no such user.jpg")


def test_no_library_takes_a_url_for_a_local_path():
    with pytest.raises(TypeError, match="s3://bucket/x is no file on this machine"):
        open(place("s3://bucket/x"))  # noqa: PTH123, SIM115


def test_a_file_is_written_whole_or_not_at_all(anywhere):
    path = anywhere / "a" / "b.txt"
    write_atomic(path, "one")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half of tw")
        raise ZeroDivisionError
    assert path.read_text() == "one"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["b.txt"]


def test_what_is_there_is_found_and_what_is_not_is_not(anywhere):
    for name in ("part-1.parquet", "part-2.parquet", "other", "deep/part-3.parquet"):
        write_atomic(anywhere / name, name)
    assert sorted(path.name for path in anywhere.glob("part-*.parquet")) == ["part-1.parquet", "part-2.parquet"]
    assert sorted(path.name for path in anywhere.iterdir()) == ["deep", "other", "part-1.parquet", "part-2.parquet"]
    assert (anywhere / "deep").is_dir() and not (anywhere / "deep").is_file() and (anywhere / "deep").exists()
    assert (anywhere / "other").is_file() and not (anywhere / "other").is_dir() and (anywhere / "other").exists()
    assert not (anywhere / "oth").exists() and not (anywhere / "oth").is_file() and not (anywhere / "oth").is_dir()
    assert list((anywhere / "nowhere").glob("*")) == []
    with pytest.raises(FileNotFoundError, match="oth") as caught:
        (anywhere / "oth").read_text()
    assert caught.value.strerror == "No such file or directory" and caught.value.filename
    (anywhere / "oth").unlink(missing_ok=True)
    (anywhere / "other").unlink()
    remove_tree(anywhere / "deep")
    remove_tree(anywhere / "nowhere")
    assert sorted(path.name for path in anywhere.iterdir()) == ["part-1.parquet", "part-2.parquet"]


def test_libraries_get_the_file_itself_or_its_content(anywhere):
    write_atomic(anywhere / "x.bin", b"content")
    with local_file(anywhere / "x.bin") as file:
        assert file.read_bytes() == b"content" and file.name == "x.bin"
    given = readable(anywhere / "x.bin")
    assert (given.read_bytes() if isinstance(given, Path) else given.read()) == b"content"
    with (anywhere / "x.bin").open("rb") as file:
        file.seek(3)
        assert file.read(2) == b"te"


def _append(url, number):
    write_atomic(url / f"{number}", str(number))
    return sorted(path.name for path in url.iterdir())


def test_processes_see_what_others_wrote_also_forked_ones(bucket):
    assert list(bucket.iterdir()) == []
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_append, (bucket, 1)) == ["1"]
    assert [path.name for path in bucket.iterdir()] == ["1"]
    assert _append(bucket, 2) == ["1", "2"]


def test_a_missing_bucket_is_told_and_never_made(bucket):
    absent = place("s3://no-such-bucket/runs")
    for act in (absent.check, lambda: write_atomic(absent / "x", "x")):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*look at the name") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not absent.exists() and not absent.parent.exists()
    bucket.check()
    (bucket / "not there yet").check()


def test_missing_credentials_are_one_line_that_names_the_variables(fresh, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=r"s3://.*: Unable to locate credentials; .*AWS_ACCESS_KEY_ID"):
        (fresh / "x").exists()


def test_a_store_that_does_not_answer_is_no_missing_file(fresh, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    for act in (fresh.exists, (fresh / "x").read_bytes, lambda: list(fresh.glob("*"))):
        with pytest.raises(StorageError, match=r"Could not connect.*127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
            act()


def test_a_missing_driver_names_the_extra_and_an_unknown_scheme_the_known_ones(fresh, monkeypatch):
    with pytest.raises(UserError, match=r"nosuch://.*not known.*use s3://"):
        place("nosuch://bucket/x").exists()
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    places._filesystem.cache_clear()
    with pytest.raises(UserError, match=r"s3://: .*s3fs.*pip install s3fs"):
        Remote("s3://bucket").exists()
