"""Opening a labels file of any kind as rows: an image's name and a cell that says its classes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pmm_ray.data.npy import read_npy_dict
from pmm_ray.data.problems import shown, some
from pmm_ray.errors import UserError
from pmm_ray.files import readable

_IMAGE_COLUMNS = ("image", "name", "file", "filename", "file_name", "image_name", "image_id", "path", "img")
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "categories", "class_id", "class_ids")
_HOT = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": 0, "none": 0, "nan": 0, "n/a": 0, "null": 0}

Rows = tuple[list[tuple[str, Any]], tuple[str, ...] | None]


def read_rows(path: Path) -> Rows:
    """A labels file as (rows, columns), rows being (image name, cell).

    Where the file has a 0/1 column per class, `columns` are the class names and the cells lists of 0 and 1; elsewhere
    `columns` is None and a cell is a string, a number, or a list of them.

    Raises:
        UserError: missing, of an unknown kind, or broken.
    """
    readers = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".npy": _npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{shown(path)}: labels are read from {', '.join(readers)}: set data.labels to one of those")
    if not path.is_file():
        raise UserError(f"{shown(path)}: no such labels file: set data.labels (a path below data.root, or absolute)")
    try:
        return reader(path)
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)}: is not UTF-8 text: save it as UTF-8") from None
    except (OSError, ValueError, RecursionError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"{shown(path)}: cannot be read ({shown(error)}): repair or replace it") from None


class _Object(list[tuple[str, Any]]):
    """A JSON object as pairs, since an image named twice is merged and not dropped."""


def _json(path: Path) -> Rows:
    value = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_Object)
    if isinstance(value, list) and not isinstance(value, _Object) and all(isinstance(item, _Object) for item in value):
        records = [dict(item) for item in value]
        header = list(dict.fromkeys(key for record in records for key in record))
        return _table(path, header, ([record.get(key) for key in header] for record in records))
    if not isinstance(value, _Object):
        raise UserError(f"{shown(path)}: must be an object of image name -> classes, or a list of records")
    return _cells(path, value), None


def _cells(path: Path, rows: Iterable[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    named = [(str(name).strip(), cell) for name, cell in rows if name not in (None, "")]
    bad = [name for name, cell in named if not _is_cell(cell)]
    if bad:
        raise UserError(f"{shown(path)}: the entry of {some(bad)} is no class, list of classes or 0/1 vector")
    return named


def _is_cell(cell: Any) -> bool:
    items = cell if isinstance(cell, list) and not isinstance(cell, _Object) else [cell]
    return all(item is None or isinstance(item, str | int | float) for item in items)


def _csv(path: Path) -> Rows:
    text = path.read_text("utf-8-sig")
    first = text.split("\n", 1)[0]
    delimiter = next((d for d in (",", "\t", ";") if d in first), ",")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = [row for row in rows if any(field.strip() for field in row)]
    header = [name.strip() for name in lines[0]] if lines else []
    for row in lines[1:]:
        if len(row) != len(header):
            raise UserError(
                f"{shown(path)}: the line of {shown(row[0])} has {len(row)} fields, the first line {len(header)}: "
                "separate several labels of an image by ';'"
            )
    return _table(path, header, lines[1:])


def _parquet(path: Path) -> Rows:
    table = pq.read_table(readable(path))
    columns = [column.to_pylist() for column in table.columns]
    return _table(path, table.column_names, zip(*columns, strict=True))


def _npy(path: Path) -> Rows:
    rows = []
    for name, vector in read_npy_dict(path).items():
        cell = np.asarray(vector)
        if cell.ndim != 1 or cell.dtype.kind not in "fiub" or not np.isin(cell, (0, 1)).all():
            raise UserError(f"{shown(path)}: the entry of {shown(name)} is no 0/1 vector with one value per class")
        rows.append((str(name), cell.astype(int).tolist()))
    if len({len(cell) for _, cell in rows}) > 1:
        raise UserError(f"{shown(path)}: its vectors differ in length: write it again")
    return rows, None


def _table(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> Rows:
    lowered = [name.lower() for name in header]
    image = next((lowered.index(name) for name in _IMAGE_COLUMNS if name in lowered), None)
    label = next((lowered.index(name) for name in _LABEL_COLUMNS if name in lowered), None)
    if image is None or len(header) < 2:
        raise UserError(
            f"{shown(path)}: the columns are {some(header, 5) or 'none'}: "
            "name them in the first line, 'image,label' or 'image' and one column per class"
        )
    if label is not None:
        return _cells(path, ((line[image], line[label]) for line in lines)), None
    hot = [i for i, name in enumerate(lowered) if i != image and name and not name.startswith(("unnamed:", "__index"))]
    rows = [
        (
            str(line[image]).strip(),
            [_hot(line[i], f"{shown(path)}: {shown(line[image])} {shown(header[i])}") for i in hot],
        )
        for line in lines
        if line[image] not in (None, "")
    ]
    return rows, tuple(header[i] for i in hot)


def _hot(value: Any, where: str) -> int:
    hot = _HOT.get(str(value).strip().lower())
    if hot is None:
        raise UserError(f"{where}: {shown(value)} is not 0 or 1: class columns hold 0 or 1, or name a column 'label'")
    return hot
