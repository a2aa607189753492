"""Who says which setting is tried next: a list made beforehand, or Optuna, which learns from what was tried."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pmm_ray.search.space import Dimension, Space, Values

_BY_CHANCE_FIRST = 12
"""Settings that Optuna draws before it begins to reason."""
_MOST_IN_VAIN = 1000
"""Draws in a row that are of no use, after which there is nothing left to find."""


class Proposer(Protocol):
    """Settings, one at a time."""

    def ask(self) -> Values | None:
        """The next one; None: there are no more."""
        ...

    def tell(self, values: Values, score: float | None) -> None:
        """What came of one, asked for here or in an earlier run; None: nothing."""
        ...


class Listed:
    """Settings that do not depend on what comes of them."""

    def __init__(self, settings: Iterator[Values]) -> None:
        self._settings = settings

    def ask(self) -> Values | None:
        """The next of the list."""
        return next(self._settings, None)

    def tell(self, values: Values, score: float | None) -> None:
        """No matter."""


class Adaptive:
    """Optuna's tree-structured Parzen estimator. Parallel trials are told apart by the constant liar."""

    def __init__(self, space: Space, *, seed: int) -> None:
        import optuna

        with warnings.catch_warnings():
            # of arguments that Optuna calls experimental
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=_BY_CHANCE_FIRST, multivariate=True, constant_liar=True
            )
        self._study = _study(sampler)
        self._space, self._distributions = space, _distributions(space)
        self._asked: list[tuple[Values, Any]] = []

    def ask(self) -> Values | None:
        """What Optuna suggests, knowing all that it was told. What the space does not allow has failed."""
        import optuna

        for _ in range(_MOST_IN_VAIN):
            trial = self._study.ask(self._distributions)
            values = self._space.read(_plain(self._space, trial.params))
            if values is not None:
                self._asked.append((values, trial))
                return values
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def tell(self, values: Values, score: float | None) -> None:
        """Let Optuna know. A setting outside its space (the base config's own may be) is of no use to it."""
        import optuna

        for i, (asked, trial) in enumerate(self._asked):
            if asked == values:
                state = optuna.trial.TrialState.FAIL if score is None else None
                self._study.tell(trial, score, state=state)
                del self._asked[i]
                return
        if score is None:
            return
        if all(_holds(dimension, values[dimension.key]) for dimension in self._space.dimensions):
            known = optuna.trial.create_trial(params=dict(values), distributions=self._distributions, value=score)
            self._study.add_trial(known)


def proposer(searcher: str, space: Space, *, seed: int, first: Values) -> Proposer:
    """The proposer of that name, which begins with the setting `first`, and proposes nothing of a list twice."""
    if searcher == "optuna":
        return _Beginning(first, Adaptive(space, seed=seed))
    makers: dict[str, Callable[[], Iterator[Values]]] = {
        "grid": space.grid,
        "random": partial(_drawn, space, seed=seed),
        "quasi_random": partial(_spread, space, seed=seed),
    }
    return Listed(_distinct(itertools.chain([first], makers[searcher]()), space))


class _Beginning:
    """One setting first, then another proposer's."""

    def __init__(self, first: Values, then: Proposer) -> None:
        self._first: Values | None = first
        self._then = then

    def ask(self) -> Values | None:
        first, self._first = self._first, None
        return self._then.ask() if first is None else first

    def tell(self, values: Values, score: float | None) -> None:
        self._then.tell(values, score)


def _distinct(settings: Iterator[Values], space: Space) -> Iterator[Values]:
    """Each whose values go together, once. A space of few values has an end, which chance alone would not find."""
    seen: set[str] = set()
    in_vain = 0
    for values in map(space.read, settings):
        if values is not None and repr(values) not in seen:
            seen.add(repr(values))
            in_vain = 0
            yield values
        elif (in_vain := in_vain + 1) > _MOST_IN_VAIN:
            return


def _drawn(space: Space, *, seed: int) -> Iterator[Values]:
    rng = np.random.default_rng(seed)
    while True:
        yield _at_point(space, rng.random(len(space.dimensions)))


def _spread(space: Space, *, seed: int) -> Iterator[Values]:
    """Scrambled Sobol points: they leave no large hole."""
    from scipy.stats import qmc

    sobol = qmc.Sobol(len(space.dimensions), scramble=True, rng=seed)
    while True:
        yield _at_point(space, sobol.random(1)[0])


def _at_point(space: Space, point: NDArray[np.float64]) -> Values:
    return {d.key: _at(d, float(u)) for d, u in zip(space.dimensions, point, strict=True)}


def _at(dimension: Dimension, u: float) -> Any:
    """The value at the share u, in [0, 1), of a dimension."""
    if (listed := dimension.listed) is not None:
        return listed[int(u * len(listed))]
    low, high = dimension.values
    return _neat(low * (high / low) ** u if dimension.kind == "loguniform" else low + u * (high - low), dimension)


def _neat(value: Any, dimension: Dimension) -> Any:
    """A number of a range to four digits, which people can read and write; within the range."""
    if dimension.kind not in ("uniform", "loguniform"):
        return value
    return min(max(float(f"{value:.4g}"), dimension.values[0]), dimension.values[1])


def _study(sampler: Any) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def made(dimension: Dimension) -> Any:
        if dimension.kind == "int":
            return IntDistribution(*dimension.values)
        if dimension.kind in ("uniform", "loguniform"):
            low, high = dimension.values
            return FloatDistribution(low, high, log=dimension.kind == "loguniform")
        return CategoricalDistribution(dimension.values)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {dimension.key: made(dimension) for dimension in space.dimensions}


def _plain(space: Space, params: dict[str, Any]) -> Values:
    """In the space's order."""
    return {dimension.key: _neat(params[dimension.key], dimension) for dimension in space.dimensions}


def _holds(dimension: Dimension, value: Any) -> bool:
    if dimension.kind in ("choice", "grid"):
        return value in dimension.values
    return isinstance(value, int | float) and dimension.values[0] <= value <= dimension.values[1]
