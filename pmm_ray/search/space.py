"""The search space: which settings vary, by the dotted keys that YAML, command line and MLflow use too."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pmm_ray.config import Config, Section
from pmm_ray.errors import UserError
from pmm_ray.settings import all_keys, changed

Value = float | int | str | bool | None
Values = dict[str, Value]
"""One setting: dotted key -> value."""
Kind = Literal["uniform", "loguniform", "int", "choice", "grid"]
_RANGES = ("uniform", "loguniform", "int")
_KINDS = (*_RANGES, "choice", "grid")

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""Numbers that YAML 1.1 takes for text unless they have a point and a sign: 1e-4, 1.0e4. No setting is such text."""

SEARCHED = {"masks": ("masks.",), "segmentation": ("masks.", "seg.", "pus.", "cam.")}
"""What a kind of trial may vary."""


@dataclass(frozen=True)
class Dimension:
    """One setting that varies: [low, high] of a range (both included), or the values there are."""

    key: str
    kind: Kind
    values: tuple[Any, ...]

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All values, or None if they cannot be listed."""
        if self.kind == "int":
            return tuple(range(self.values[0], self.values[1] + 1))
        return None if self.kind in _RANGES else self.values


@dataclass(frozen=True)
class Space:
    """The settings that vary, and the config whose settings they are."""

    dimensions: tuple[Dimension, ...]
    config: Config

    @property
    def keys(self) -> tuple[str, ...]:
        """Their dotted names."""
        return tuple(dimension.key for dimension in self.dimensions)

    @property
    def own(self) -> Values:
        """What the config itself has for these keys: the setting to be compared with."""
        return {key: _get(self.config, key) for key in self.keys}

    def read(self, values: Values) -> Values | None:
        """The values as the config has them, 11 and 11.0 as one; None if they do not go together.

        Each alone may be one that its key can have, and `low` above `high`.
        """
        config = _in(self.config, values)
        return None if config is None else {key: _get(config, key) for key in self.keys}

    def grid(self) -> Iterator[Values]:
        """Every combination of values that go together, the last key fastest.

        Raises:
            UserError: a dimension is a range.
        """
        lists = []
        for dimension in self.dimensions:
            if dimension.listed is None:
                raise UserError(
                    f"sweep.space.{dimension.key}: a grid needs values, write grid: [...], or use sweep.searcher=random"
                )
            lists.append(dimension.listed)
        yield from filter(None, map(self.read, _combined(self.dimensions, *lists)))


def parse(tree: Mapping[str, Any], config: Config, *, trial: str) -> Space:
    """The space of a sweep file: `{masks.alpha: {loguniform: [0.5, 32]}, ...}`, keys dotted or nested; null removes.

    Raises:
        UserError: nothing varies; no such key, or one that this kind of trial cannot vary, or that none of its settings
            reads; no such kind of range; or a value that the key cannot have.
    """
    if config.recipe.startswith("rrm"):
        raise UserError(f"recipe={config.recipe}: a sweep searches masks of a CAM classifier; use recipe=pmm")
    dimensions = tuple(_dimension(key, entry) for key, entry in _flat(tree) if entry is not None)
    if not dimensions:
        raise UserError(
            "sweep.space: nothing varies; write e.g. 'sweep: {space: {masks.alpha: {loguniform: [1, 32]}}}'"
        )
    known = [name for name, _ in all_keys() if name.startswith(SEARCHED[trial])]
    for dimension in dimensions:
        if dimension.key not in known:
            near = difflib.get_close_matches(dimension.key, known, n=1)
            own = f"; a sweep of {trial} varies keys that begin with {', '.join(SEARCHED[trial])}"
            hint = f"; did you mean {near[0]}?" if near else own
            raise UserError(f"sweep.space.{dimension.key}: not a key that this sweep can vary{hint}")
    for dimension in dimensions:
        others = [other for other in dimensions if other is not dimension]
        for value in dimension.values:
            _check_value(config, dimension.key, value, others)
        if not any(_reads(one, dimension.key) for one in _some(config, others)):
            raise UserError(
                f"sweep.space.{dimension.key}: no setting of this sweep reads it; take it out, or switch on what does "
                f"(masks.maker={config.masks.maker}, masks.cvs={str(config.masks.cvs).lower()})"
            )
    return Space(dimensions, config)


def _check_value(config: Config, key: str, value: Value, others: Sequence[Dimension]) -> None:
    """Raise UserError if the key cannot have the value, neither in the config nor beside a value of another key."""
    try:
        changed(config, {key: value}, source="sweep.space")
    except UserError:
        beside = ({key: value, other.key: one} for other in others for one in other.values)
        if not any(_in(config, values) for values in beside):
            raise


def _reads(config: Config, key: str) -> bool:
    """Whether a setting plays a part, the others being as they are."""
    section: Any = config
    for name in key.split("."):
        if isinstance(section, Section) and name in section.unused():
            return False
        section = getattr(section, name)
    return True


def _some(config: Config, dimensions: Sequence[Dimension]) -> Iterator[Config]:
    """The config, and so with all that may decide in some dimensions whether another key is read."""
    yield config
    combined = _combined(dimensions, *(_deciding(config, dimension) for dimension in dimensions))
    yield from filter(None, (_in(config, values) for values in combined))


def _deciding(config: Config, dimension: Dimension) -> list[Value]:
    """Words, true and false are each a case of their own; numbers matter only by being 0 or not (see `unused`)."""
    words = [value for value in dimension.values if value is None or isinstance(value, str | bool)]
    cases = {value == 0: value for value in dimension.values if value not in words}
    own = _get(config, dimension.key)
    if (own == 0) in cases:
        # it goes with the config's other values
        cases[own == 0] = own
    return [*words, *cases.values()]


def _combined(dimensions: Sequence[Dimension], *lists: Sequence[Any]) -> Iterator[Values]:
    for values in itertools.product(*lists):
        yield dict(zip((dimension.key for dimension in dimensions), values, strict=True))


def _in(config: Config, values: Values) -> Config | None:
    """The config with the values; None if they do not go together."""
    try:
        return changed(config, values)
    except UserError:
        return None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    merged: dict[str, Any] = {}
    for key, entry in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(entry, Mapping) and not set(entry) & set(_KINDS):
            merged |= dict(_flat(entry, f"{dotted}."))
        else:
            merged[dotted] = entry
    yield from merged.items()


def _dimension(key: str, entry: Any) -> Dimension:
    where = f"sweep.space.{key}"
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise UserError(f"{where}: give one of {', '.join(_KINDS)} with its values, got {entry!r}")
    ((kind, values),) = entry.items()
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UserError(f"{where}.{kind}: give a list, got {values!r}")
    values = [float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value for value in values]
    if kind in _RANGES:
        _check_range(where, kind, values)
    elif any(not isinstance(value, str | int | float | bool | None) for value in values):
        raise UserError(f"{where}.{kind}: values must be numbers, words, true, false or null, got {values!r}")
    elif len({(isinstance(value, bool), value) for value in values}) != len(values):
        raise UserError(f"{where}.{kind}: a value is there twice: {values!r}")
    return Dimension(key, kind, tuple(map(int, values) if kind == "int" else values))


def _check_range(where: str, kind: str, values: Sequence[Any]) -> None:
    numbers = len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or not all(math.isfinite(v) for v in values) or not values[0] < values[1]:
        raise UserError(f"{where}.{kind}: give [lowest, highest], got {list(values)!r}")
    if kind == "int" and any(int(v) != v for v in values):
        raise UserError(f"{where}.int: give whole numbers, got {list(values)!r}")
    if kind == "loguniform" and not values[0] > 0:
        raise UserError(f"{where}.loguniform: the lowest must be above 0, got {values[0]!r}")


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
