from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sets import photo

from pmm_ray.data.names import ImageIndex, NotFoundInFolder, stem
from pmm_ray.data.problems import SHOWN, Problems, shown, some
from pmm_ray.files import write_atomic


def index_of(folder, *paths):
    for path in paths:
        photo(folder / path)
    problems = Problems()
    return ImageIndex(folder, problems), problems


def test_a_name_is_the_path_without_suffix_and_other_dots_stay():
    assert stem("a/b.c/x.y.jpg") == "a/b.c/x.y"


@pytest.mark.parametrize(
    ("path", "entries"),
    [
        ("x.jpg", ["x", "x.jpg", "./x.jpg", "x.JPG", "x.png"]),
        ("X.JPG", ["X", "X.JPG"]),
        ("a b c.jpeg", ["a b c", "a b c.jpeg"]),
        ("über 猫.jpg", ["über 猫"]),
        ("v1.2.final.jpg", ["v1.2.final", "v1.2.final.jpg"]),
        ("sub/deep/x.webp", ["sub/deep/x", "sub//deep/x.webp"]),
        ("we\nird.jpg", ["we\nird"]),
        ("#1 (2);'$.jpg", ["#1 (2);'$"]),
        ("sub/x.jpg", [r"sub\x.jpg", r"sub\x", "{root}/sub/x.jpg"]),
        (r"back\slash.jpg", [r"back\slash", r"back\slash.jpg"]),
        ("e\u0301.jpg", ["e\u0301", "\u00e9", "\u00e9.jpg", "\u00e9.png"]),
    ],
)
def test_odd_names_are_found_with_and_without_suffix(tmp_path, path, entries):
    index, problems = index_of(tmp_path, path)
    assert [index.find(entry.replace("{root}", str(tmp_path))) for entry in entries] == [path] * len(entries)
    assert index.names[path] == stem(path)
    assert not problems.listed()


def test_two_images_of_one_stem_keep_their_suffix_and_must_be_told_apart(tmp_path):
    index, _ = index_of(tmp_path, "a.jpg", "a.png", "b.jpg")
    assert index.names == {"a.jpg": "a.jpg", "a.png": "a.png", "b.jpg": "b"}
    assert index.find("a.png") == "a.png"
    with pytest.raises(NotFoundInFolder, match=r"a\.jpg, a\.png"):
        index.find("a")


def test_a_gif_beside_a_photo_is_its_mask_or_preview_and_alone_a_photo(tmp_path):
    index, problems = index_of(tmp_path, "a.jpg", "a.gif", "b.GIF", "sub/a.gif")
    assert index.names == {"a.jpg": "a", "b.GIF": "b", "sub/a.gif": "sub/a"}
    assert index.find("a") == "a.jpg" and not problems.listed()


def test_names_stay_unique_when_a_stem_looks_like_another_file(tmp_path):
    index, _ = index_of(tmp_path, "a.jpg", "a.png", "a.png.jpg")
    assert len(set(index.names.values())) == 3


def test_of_two_names_that_look_alike_each_is_found_by_its_own_characters(tmp_path):
    index, _ = index_of(tmp_path, "e\u0301.jpg", "\u00e9.jpg")
    for entry in ("e\u0301", "\u00e9"):
        assert index.find(entry) == index.find_anywhere(f"{entry}.jpg") == f"{entry}.jpg"


def test_a_photo_of_a_kind_that_is_not_read_is_told_as_such(tmp_path):
    write_atomic(tmp_path / "sub" / "x.HEIC", b"")
    index, _ = index_of(tmp_path, "a.jpg")
    for entry in ("sub/x.HEIC", "sub/x"):
        with pytest.raises(NotFoundInFolder, match=r"\.heic files are not read: convert them"):
            index.find_anywhere(entry)


@pytest.mark.parametrize(
    "entry",
    [r"..\secret", "{root}/secret", "{root}/set/../secret", "../secret", "a/../../secret", "/etc/passwd", "..", "a/.."],
)
def test_nothing_outside_the_folder_is_found(tmp_path, entry):
    photo(tmp_path / "secret.jpg")
    index, _ = index_of(tmp_path / "set", "a/x.jpg")
    with pytest.raises(NotFoundInFolder):
        index.find(entry.replace("{root}", str(tmp_path)))


@given(st.text(max_size=30))
def test_whatever_is_asked_for_is_an_image_of_the_folder_or_not_found(tmp_path_factory, entry):
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.exists():
        photo(folder / "x.jpg")
    try:
        assert ImageIndex(folder, Problems()).find(entry) == "x.jpg"
    except NotFoundInFolder as error:
        assert "\n" not in str(error)


def test_hidden_files_other_files_and_skipped_folders_are_no_images(tmp_path):
    for path in ("x.jpg", "._x.jpg", ".thumbs/y.jpg", "masks/x.png"):
        photo(tmp_path / path)
    (tmp_path / "notes.txt").write_text("")
    assert list(ImageIndex(tmp_path, Problems(), skip=[tmp_path / "masks"]).names) == ["x.jpg"]


def test_a_skipped_folder_around_the_images_hides_none(anywhere):
    write_atomic(anywhere / "set" / "x.jpg", b"")
    assert list(ImageIndex(anywhere / "set", Problems(), skip=[anywhere]).names) == ["x.jpg"]


def test_a_bare_file_name_finds_an_image_in_a_subfolder_only_if_it_is_the_only_one(tmp_path):
    index, _ = index_of(tmp_path, "one/x.jpg", "one/y.jpg", "two/y.jpg")
    assert index.find_anywhere("x") == index.find_anywhere("x.jpg") == "one/x.jpg"
    with pytest.raises(NotFoundInFolder, match=r"one/y\.jpg, two/y\.jpg"):
        index.find_anywhere("y.jpg")
    with pytest.raises(NotFoundInFolder):
        index.find("x")


def test_file_names_that_cannot_be_written_elsewhere_are_listed(tmp_path):
    photo(tmp_path / "good.jpg")
    photo(tmp_path / ("x" * 230 + ".jpg"))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg")).write_bytes(b"")
    problems = Problems()
    assert list(ImageIndex(tmp_path, problems).names) == ["good.jpg"]
    listed = problems.listed()
    assert len(listed) == 2
    assert all("rename it" in problem.why for problem in listed)
    assert "UTF-8" in "".join(problem.why for problem in listed)
    "".join(problem.name for problem in listed).encode()


def test_names_in_messages_never_break_a_line():
    assert shown("plain name.jpg") == "plain name.jpg"
    assert shown("a\nb") == "'a\\nb'"
    assert shown("") == "''"
    assert some(["a", "b", "c", "d"]) == "a, b, c and 1 more"


def test_a_long_group_of_problems_ends_in_a_line_that_counts_the_rest():
    problems = Problems()
    for number in range(SHOWN + 5):
        problems.add(f"x{number}", "why", group="lost")
    problems.add("other", "why", group="elsewhere")
    listed = problems.listed()
    assert len(listed) == SHOWN + 2
    assert listed[SHOWN].name == "5 more"
    assert listed[-1].name == "other"
