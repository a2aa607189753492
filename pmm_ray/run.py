"""``python -m pmm_ray.run [FILE.yaml ...] [section.key=value ...]``: one recipe, from settings to a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pmm_ray import settings
from pmm_ray.command import load_data, open_store, protocol, run_command, tell_failures, tell_network, tell_plan

if TYPE_CHECKING:
    from pmm_ray.config import Config
    from pmm_ray.data.dataset import Dataset
    from pmm_ray.method import Score
    from pmm_ray.pipeline import Step
    from pmm_ray.tracking import RunHandle

_USAGE = """\
python -m pmm_ray.run [FILE.yaml ...] [section.key=value ...] [--dry-run]

Image-level labels in, pseudo-masks and a trained segmentation model out. Files merge left to right, then the overrides.
Run the same line again after an interruption and it goes on where it stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 an error that the user can correct, 130 interrupted."""
    return run_command(arguments, _work, program="pmm_ray.run", usage=_USAGE, keys=settings.describe)


def _work(files: list[str], overrides: list[str], dry_run: bool) -> None:
    config = settings.load(files, overrides)
    if dry_run:
        _dry_run(config)
    else:
        _run(config)


def _dry_run(config: Config) -> None:
    print(settings.to_yaml(config))
    data = _load(config)
    tell_plan(_plan(config, data))


def _run(config: Config) -> None:
    from pmm_ray.artefacts import digest
    from pmm_ray.pipeline import Runner
    from pmm_ray.recipes import RECIPES
    from pmm_ray.tracking import open_tracker

    print(f"recipe {config.recipe} on {config.data.kind} data in {config.data.root}, named {config.name}")
    data = _load(config)
    # The plan is walked once without work, so that a wrong network or file is told now and not after hours.
    _plan(config, data)
    how = config.tracking
    tracker = open_tracker(enabled=how.enabled, uri=how.uri, experiment=how.experiment, store=open_store(config).root)
    tags = {"recipe": config.recipe, "seed": config.seed, "data": data.name}
    key = digest(config.identity())
    # Leaving Ray comes last: a job that is stopped has three seconds, and its end belongs in MLflow.
    with ExitStack() as last, tracker.run(config.name, tags=tags, params=config.model_dump(), resume_key=key) as handle:
        run = Runner(config, open_store(config), handle)
        last.callback(run.close)
        scores = RECIPES[config.recipe](run, config, data)
        _report(config, data, scores, handle)
    if run.networks:
        tell_network(run.networks[-1])
    tell_failures(run.failures)


def _load(config: Config) -> Dataset:
    data = load_data(config)
    if not _scored(data):
        print(f"nothing will be scored: {data.name} has no ground truth")
    return data


def _scored(data: Dataset) -> bool:
    return any(split is not None and split.truth is not None for split in (data.train, data.val))


def _plan(config: Config, data: Dataset) -> list[Step]:
    from pmm_ray.pipeline import Runner
    from pmm_ray.recipes import RECIPES
    from pmm_ray.tracking import RunHandle

    run = Runner(config, open_store(config), RunHandle(), dry=True)
    RECIPES[config.recipe](run, config, data)
    return run.steps


def _report(config: Config, data: Dataset, scores: Sequence[Score], handle: RunHandle) -> None:
    """The table on the screen, in the store as Markdown and CSV, and in MLflow."""
    from rich.console import Console

    from pmm_ray.files import write_atomic
    from pmm_ray.report.tables import ablation_table, cycle_table, seeds_table

    if not _scored(data):
        print(f"nothing was scored: {data.name} has no ground truth")
        return
    note = protocol(config, data)
    if config.recipe.endswith("ablation"):
        tables = {"ablation": ablation_table(scores, note=note), "seeds": seeds_table(scores, note=note)}
    else:
        tables = {"cycles": cycle_table(scores, note=note)}
    for name, table in tables.items():
        Console(width=None if sys.stdout.isatty() else 160).print(table.rich())
        handle.table(name, table.records())
        path = open_store(config).root / "tables" / f"{config.name}-{name}.md"
        write_atomic(path, table.markdown())
        write_atomic(path.with_suffix(".csv"), table.csv())
        handle.artifact(path, "tables")
        print(f"table: {path}")


if __name__ == "__main__":
    sys.exit(main())
