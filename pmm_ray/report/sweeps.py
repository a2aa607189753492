"""What a sweep found, in numbers: the best setting, which parameters matter, the best against the default."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmm_ray.report.tables import Column, Table, Value, shown

Setting = str | int | float | bool | None
FEWEST = 10
"""Settings below which nothing is said of a parameter's importance."""


@dataclass(frozen=True)
class Tried:
    """One setting of a sweep and how it did.

    Attributes:
        setting: dotted key -> value.
        score: in [0, 1]; None if it failed.
        shares: share of the whole that it was scored on, in (0, 1]: 1 if complete, less if it was stopped early.
        default: whether it is the setting that the sweep started from.
    """

    setting: Mapping[str, Setting]
    score: float | None
    shares: float = 1.0
    default: bool = False

    @property
    def complete(self) -> bool:
        """Scored on the whole: what comparisons are made of. A score on a part may be luck."""
        return self.score is not None and self.shares >= 1


def best(tried: Iterable[Tried]) -> Tried | None:
    """The complete setting of the highest score, the first of equals; None if none is complete."""
    complete = [one for one in tried if one.complete]
    return max(complete, key=lambda one: one.score or 0.0, default=None)


def default_of(tried: Iterable[Tried]) -> Tried | None:
    """The setting marked as default, if it is complete."""
    return next((one for one in tried if one.default and one.complete), None)


def importance(tried: Sequence[Tried], *, keys: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Share of the score's variance that each parameter explains, alone or together with others.

    A random forest learns the score from the setting. The share is the total-effect index of the forest (Jansen's
    estimator: half the mean square by which a prediction moves when the parameter's values are dealt out anew, over the
    predictions' variance), times the R2 of the forest on settings left out of each tree. So it is low for all
    parameters where the score cannot be predicted, and the shares may sum to more than 1 where parameters interact.
    Scores below Tukey's fence (one and a half interquartile ranges below the lower quartile) count as on it, or a
    few hopeless settings would be all the variance there is.

    Args:
        tried: failed settings are left out, one stopped early weighs as much as the share it was scored on.
        keys: the parameters; one that a setting lacks counts as missing, which the forest takes as a value.
        seed: of the forest and the dealing.

    Returns:
        Key -> share, in the order of `keys`. Empty for fewer than `FEWEST` settings; zeros if all scores are equal.
    """
    scored = [one for one in tried if one.score is not None and one.shares > 0]
    if len(scored) < FEWEST:
        return {}
    scores = np.array([one.score for one in scored], dtype=np.float64)
    quarter, three_quarters = np.percentile(scores, (25, 75))
    scores = np.maximum(scores, quarter - 1.5 * (three_quarters - quarter))
    if np.ptp(scores) == 0:
        return dict.fromkeys(keys, 0.0)
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    values = np.stack([_column([one.setting.get(key) for one in scored]) for key in keys], axis=1)
    weights = np.array([one.shares for one in scored])
    forest = RandomForestRegressor(200, oob_score=True, min_samples_leaf=2, random_state=seed, n_jobs=1)
    forest.fit(values, scores, sample_weight=weights)
    explained = max(0.0, float(forest.oob_score_))
    # Against the forest's own predictions the drop in R2 is twice the total-effect index.
    moved = permutation_importance(
        forest, values, forest.predict(values), n_repeats=10, random_state=seed, sample_weight=weights
    )
    return {key: explained * float(drop) / 2 for key, drop in zip(keys, moved.importances_mean, strict=True)}


def best_against_default(
    tried: Sequence[Tried],
    *,
    keys: Sequence[str],
    default: Mapping[str, Setting],
    label: str,
    more: Mapping[str, tuple[Value, Value]] | None = None,
    title: str = "Best setting against the default",
    note: str = "",
) -> Table:
    """A row per parameter and per score: the default's and the best's, and what was gained.

    Args:
        tried: of which `best` and `default_of` are compared; a dash stands for the score of one that is not there.
        keys: the parameters, in order.
        default: the default's value of each; of those it lacks nothing is shown.
        label: what the score is: metric, photos, protocol.
        more: other scores, label -> (default's, best's), shares in [0, 1], several for several seeds.
        title: of the table.
        note: below the table.
    """
    found, start = best(tried), default_of(tried)
    rows: list[tuple[Value, ...]] = []
    for key in keys:
        before, after = (
            written(of.get(key)) if key in of else None for of in (default, found.setting if found else {})
        )
        rows.append((key, before, after, None))
    scores: dict[str, tuple[Value, Value]] = {label: (start.score if start else None, found.score if found else None)}
    for name, pair in (scores | dict(more or {})).items():
        rows.append((name, *map(shown, pair), _gain(*pair)))
    columns = (Column("", "text"), Column("default", "text"), Column("best", "text"), Column("gain", "points"))
    return Table(title, columns, tuple(rows), note)


def written(value: Setting) -> str:
    """A value as YAML spells it, numbers to four digits: '0.3', 'true', 'ppg', 'null'."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return value if isinstance(value, str) else f"{value:.4g}"


def ordered(values: Iterable[Setting]) -> list[Setting]:
    """Distinct values: null, false and true, numbers by size, then texts by the alphabet."""
    kinds = (type(None), bool, int | float, str)

    def place(value: Setting) -> tuple[int, float, str]:
        kind = next(number for number, of in enumerate(kinds) if isinstance(value, of))
        return (kind, 0.0, value) if isinstance(value, str) else (kind, float(value or 0), "")

    return sorted({place(value): value for value in values}.values(), key=place)


def _column(values: Sequence[Setting]) -> NDArray[np.float64]:
    """Numbers as they are, texts by their place in order; missing is NaN, which the forest takes."""
    if any(isinstance(value, str) for value in values):
        places = {value: place for place, value in enumerate(ordered(values))}
        return np.array([np.nan if value is None else places[value] for value in values], dtype=np.float64)
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _gain(before: Value, after: Value) -> Value:
    """The difference of two shares; of several seeds, seed by seed."""
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        return tuple(new - old for old, new in zip(before, after, strict=True))
    return None
