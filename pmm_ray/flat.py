"""Nested settings and figures as flat names and texts, as MLflow wants them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "", joint: str = ".") -> dict[str, Any]:
    """Nested mappings as one, with joined names: {'a': {'b': 1}} -> {'a.b': 1}. Empty mappings stay as values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}{joint}", joint)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers in nested facts, names joined by '/': what of a stage's facts can be a metric."""
    found = {}
    for name, value in flatten(facts, joint="/").items():
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found[name] = number
    return found


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Each value as text: strings and paths as they are, all else as JSON, which is how YAML spells it (null, true)."""
    return {name: text(value) for name, value in values.items()}


def text(value: Any) -> str:
    """One value as text; see `texts`."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)


def shortened(value: str, length: int) -> str:
    """At most `length` characters; a cut value ends in a hash of the whole, so that unequal values stay unequal."""
    if len(value) <= length:
        return value
    mark = f"... [{len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]}]"
    return value[: length - len(mark)] + mark


def cell(value: Any) -> Any:
    """A table's cell: text, whole and finite numbers as they are, NaN and infinities as None, all else as text."""
    if isinstance(value, str | int | None):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
