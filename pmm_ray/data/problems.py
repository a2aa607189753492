"""Collecting what had to be left out of a data set, without drowning the reader in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pmm_ray.data.dataset import Problem

SHOWN = 20
"""So many problems of one group are listed one by one; the rest is one line."""


def shown(name: object) -> str:
    """A name as it may stand in a one-line message: itself, or escaped and quoted where it would break the line."""
    text = str(name)
    return text if text and text.isprintable() else ascii(text)


def some(names: Iterable[object], count: int = 3) -> str:
    """The first names of a list for a message: 'a, b, c and 7 more'."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - count} more" if len(every) > count else ""
    return ", ".join(every[:count]) + more


class Problems:
    """A growing list of problems in groups of one kind; a long group ends in a line that counts the rest."""

    def __init__(self) -> None:
        self._groups: dict[str, list[Problem]] = defaultdict(list)

    def add(self, name: object, why: str, *, group: str, count: int = 1) -> None:
        """Note that `name`, `count` entries, could not be used, and why (one line that says what to do)."""
        self._groups[group].append(Problem(shown(name), why, count))

    def update(self, other: Problems) -> None:
        """Add all of another list."""
        for group, problems in other._groups.items():
            self._groups[group] += problems

    def first(self) -> str:
        """The first problem in words, for an error that has to name one."""
        return next((f"{problem.name}: {problem.why}" for problem in self.listed()), "")

    def listed(self) -> tuple[Problem, ...]:
        """All problems in the order of their groups, at most `SHOWN` of each and one that counts the rest."""
        result: list[Problem] = []
        for group, problems in self._groups.items():
            result += problems[:SHOWN]
            if len(problems) > SHOWN:
                rest = sum(problem.count for problem in problems[SHOWN:])
                result.append(Problem(f"{rest} more", f"{group}, like {problems[0].name}", count=rest))
        return tuple(result)
