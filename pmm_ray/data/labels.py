"""Image-level labels from a file: JSON, CSV, Parquet or the peers' cls_labels.npy, in the forms people write them.

Reading a file (`label_files`) gives rows of an image's name and a cell; this module says what the cells mean.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmm_ray.data.label_files import read_rows
from pmm_ray.data.problems import shown, some
from pmm_ray.errors import UserError

MAX_CLASSES = 254
"""Masks are uint8, with 0 for the background and 255 for ignore."""

_EMPTY = frozenset({"nan", "none", "n/a", "null"})
"""What programs write into a cell of a table that holds nothing."""


@dataclass(frozen=True)
class LabelTable:
    """Names of classes 1..C, and per image, under its name as the file writes it, the sorted ids it has (or none)."""

    names: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]


def read_labels(path: Path, *, classes: Sequence[str] | None) -> LabelTable:
    """Read a labels file.

    A cell may be a class name, an id 1..C, a list of either, several in one string separated by ';' or spaces, or a
    multi-hot vector of length C; tables may also have one 0/1 column per class. Rows of one image add up. `classes`
    are the names of 1..C; with None they are the file's own: its class columns in their order, the names it uses in
    alphabetical order, or 'class 1', 'class 2', ... where it has only ids. The name 'background' says nothing, nor do
    'nan', 'none', 'n/a' and 'null' unless `classes` has them. Names are compared as `class_name` writes them.

    Raises:
        UserError: missing or unreadable, a class that does not exist, or two that differ in upper and lower case alone.
    """
    rows, columns = read_rows(path)
    if not rows:
        raise UserError(f"{shown(path)}: has no labels: it must name at least one image")
    classes = check_classes(classes, path) if classes else None
    if columns is not None:
        columns = tuple(class_name(column) for column in columns)
        used = [column for column in columns if not _is_background(column, classes)]
        known = check_classes(classes or used, path)
        ids = {column: class_id(column, known, f"{shown(path)}: column") for column in used}
        meant = [[ids[c] for c, hot in zip(columns, cell, strict=True) if hot and c in ids] for _, cell in rows]
    elif _multi_hot([cell for _, cell in rows], classes, path):
        known = check_classes(classes or _numbered(len(rows[0][1])), path)
        meant = [[number for number, hot in enumerate(cell, 1) if hot] for _, cell in rows]
    else:
        tokens = _tokens([cell for _, cell in rows], classes)
        _refuse_commas(rows, tokens, classes, path)
        known = check_classes(classes or _own_names(tokens, path), path)
        meant = [
            [class_id(token, known, f"{shown(path)}: {shown(name)} has") for token in cell]
            for (name, _), cell in zip(rows, tokens, strict=True)
        ]
    labels: dict[str, tuple[int, ...]] = {}
    for (name, _), cell in zip(rows, meant, strict=True):
        labels[name] = tuple(sorted({*labels.get(name, ()), *cell}))
    return LabelTable(known, labels)


def class_name(text: str) -> str:
    """A name in the one form in which all are compared: composed characters (NFC), one space between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_classes(names: Sequence[str], source: object) -> tuple[str, ...]:
    """The names of classes 1..C without a leading 'background'; UserError unless they are 1 to 254 different ones."""
    listed = tuple(map(class_name, names))
    listed = listed[1:] if listed and listed[0].casefold() == "background" else listed
    if not listed or len(listed) > MAX_CLASSES:
        raise UserError(f"{shown(source)}: {len(listed)} classes; there must be 1 to {MAX_CLASSES}")
    twice = sorted({name for name in listed if listed.count(name) > 1 or not name})
    if twice:
        raise UserError(f"{shown(source)}: class names must be different and not empty, correct {some(twice)}")
    spellings: dict[str, list[str]] = {}
    for name in listed:
        spellings.setdefault(name.casefold(), []).append(name)
    for near in spellings.values():
        if len(near) > 1:
            written = f"{', '.join(map(shown, near[:-1]))} and {shown(near[-1])}"
            raise UserError(f"{shown(source)}: has classes {written}: write one of them everywhere")
    return listed


def class_id(token: str | int, names: Sequence[str], where: str) -> int:
    """The id 1..C of a class by name, or an id checked. `where` begins the UserError for one that does not exist."""
    if isinstance(token, int):
        if 1 <= token <= len(names):
            return token
        raise UserError(f"{where} class {token}, which does not exist: ids are 1..{len(names)} (0 is the background)")
    token = class_name(token)
    if token in names:
        return list(names).index(token) + 1
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(token.casefold(), folded, n=1)
    advice = f"did you mean {shown(folded[near[0]])}?" if near else f"the classes are {some(names, 8)}"
    raise UserError(f"{where} class {shown(token)}, which does not exist: {advice}")


def _multi_hot(cells: Sequence[Any], classes: Sequence[str] | None, path: Path) -> bool:
    """Whether the cells are 0/1 vectors of one length; UserError if so and the length is not that of `classes`."""
    if not all(isinstance(cell, list) for cell in cells):
        return False
    lengths = {len(cell) for cell in cells}
    if len(lengths) != 1 or not all(isinstance(v, int | float) and v in (0, 1) for cell in cells for v in cell):
        return False
    length, zeros = lengths.pop(), any(v == 0 for cell in cells for v in cell)
    if classes is None:
        return zeros
    wanted = len(check_classes(classes, path))
    if zeros and length != wanted:
        raise UserError(
            f"{shown(path)}: vectors of {length} values, {wanted} classes: correct the file or data.classes"
        )
    return length == wanted


def _tokens(cells: Sequence[Any], classes: Sequence[str] | None) -> list[list[str | int]]:
    """Each cell as a list of class names and ids.

    A string is first split at ';' and '|'. What is left is one name if it is known as one; otherwise it is split at
    spaces if every part is known (or a number). Known are `classes`, or else all single words that stand alone.
    """
    parts = [[piece for item in _as_list(cell) for piece in _split(item)] for cell in cells]
    words_alone = (p for row in parts for p in row if isinstance(p, str) and not re.search(r"\s", p))
    known = set(classes or (word for word in words_alone if _number(word) is None))
    result: list[list[str | int]] = []
    for row in parts:
        tokens: list[str | int] = []
        for part in row:
            words = part.split() if isinstance(part, str) and part not in known else [part]
            spaced = all(word in known or _number(word) is not None for word in words)
            tokens += [_token(word, known) for word in (words if spaced else [part])]
        result.append([token for token in tokens if not (_is_background(token, classes) or _is_empty(token, classes))])
    return result


def _is_background(token: str | int, classes: Sequence[str] | None) -> bool:
    """Whether this names the background, which every image has, and no class."""
    return isinstance(token, str) and token.casefold() == "background" and token not in (classes or ())


def _is_empty(token: str | int, classes: Sequence[str] | None) -> bool:
    return isinstance(token, str) and token.casefold() in _EMPTY and token not in (classes or ())


def _refuse_commas(
    rows: Sequence[tuple[str, Any]],
    tokens: Sequence[Sequence[str | int]],
    classes: Sequence[str] | None,
    path: Path,
) -> None:
    """UserError if a name has a comma, since that may be one class ('tabby, tabby cat') or two ('cat, dog')."""
    for (name, _), cell in zip(rows, tokens, strict=True):
        for token in cell:
            if isinstance(token, str) and "," in token and token not in (classes or ()):
                advice = "separate labels by ';', or list it in data.classes if it is one class"
                raise UserError(f"{shown(path)}: {shown(name)} has class {shown(token)}, with a comma: {advice}")


def _as_list(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _split(item: Any) -> list[Any]:
    if item is None or item != item:  # an empty field of a table
        return []
    if isinstance(item, str):
        return [class_name(piece) for piece in re.split(r"[;|]", item) if piece.strip()]
    return [item]


def _number(word: Any) -> int | None:
    if isinstance(word, str):
        # pandas writes ids as '1.0' where an image has none
        return int(float(word)) if re.fullmatch(r"-?\d{1,9}(\.0+)?", word) else None
    return int(word) if isinstance(word, int | float) and math.isfinite(word) and word == int(word) else None


def _token(word: Any, known: set[str]) -> str | int:
    number = None if word in known else _number(word)
    return str(word) if number is None else number


def _own_names(tokens: Sequence[Sequence[str | int]], path: Path) -> tuple[str, ...]:
    """The class names that a file without a list of classes implies."""
    used = {token for row in tokens for token in row}
    names = sorted(token for token in used if isinstance(token, str))
    numbers = [token for token in used if isinstance(token, int)]
    if names and numbers:
        raise UserError(f"{shown(path)}: mixes ids ({some(numbers)}) and names ({some(names)}): set data.classes")
    if not used:
        raise UserError(f"{shown(path)}: no image has a class: write at least one label")
    return tuple(names) or _numbered(max(numbers))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(1, min(count, MAX_CLASSES + 1) + 1))
