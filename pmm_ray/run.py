"""``python -m pmm_ray.run [FILE.yaml ...] [section.key=value ...]``: one recipe, from settings to a table."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pmm_ray import settings
from pmm_ray.errors import UserError

if TYPE_CHECKING:
    from pmm_ray.artefacts import Store
    from pmm_ray.config import Config
    from pmm_ray.data.dataset import Dataset
    from pmm_ray.method import Score
    from pmm_ray.pipeline import Runner, Step
    from pmm_ray.tracking import RunHandle

_USAGE = """\
python -m pmm_ray.run [FILE.yaml ...] [section.key=value ...] [--dry-run]

Image-level labels in, pseudo-masks and a trained segmentation model out. Files merge left to right, then the overrides.
Run the same line again after an interruption and it goes on where it stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 an error the user can mend, 130 interrupted."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        config = settings.load(
            [word for word in options.words if word.endswith((".yaml", ".yml"))],
            [word for word in options.words if not word.endswith((".yaml", ".yml"))],
        )
        return _dry_run(config) if options.dry_run else _run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "pmm_ray.run",
        usage=_USAGE,
        epilog=f"keys, with their defaults:\n\n{settings.describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="FILE.yaml | section.key=value", help="settings, in any order")
    parser.add_argument("--dry-run", action="store_true", help="print the settings and what would run, and stop")
    return parser.parse_intermixed_args(arguments)


def _dry_run(config: Config) -> int:
    data = _load_data(config)
    print(settings.to_yaml(config))
    for step in _plan(config, data):
        print(f"{'done     ' if step.was_done else 'would run'}  {step.title:<60} {step.artefact.path}")
    return 0


def _run(config: Config) -> int:
    from pmm_ray.artefacts import digest
    from pmm_ray.pipeline import Runner
    from pmm_ray.recipes import RECIPES
    from pmm_ray.tracking import open_tracker

    data = _load_data(config)
    # The plan is walked once without work, so that a missing weights file is told now and not after an hour.
    _plan(config, data)
    how = config.tracking
    tracker = open_tracker(enabled=how.enabled, uri=how.uri, experiment=how.experiment, store=_store(config).root)
    tags = {"recipe": config.recipe, "seed": config.seed, "data": data.name}
    key = digest(config.identity())
    # Leaving Ray comes last: a job that is stopped has three seconds, and its end belongs in MLflow.
    with ExitStack() as last, tracker.run(config.name, tags=tags, params=config.model_dump(), resume_key=key) as handle:
        run = Runner(config, _store(config), handle)
        last.callback(run.close)
        scores = RECIPES[config.recipe](run, config, data)
        _report(config, data, scores, handle)
    _tell_problems(data, run)
    return 0


def _plan(config: Config, data: Dataset) -> list[Step]:
    from pmm_ray.pipeline import Runner
    from pmm_ray.recipes import RECIPES
    from pmm_ray.tracking import RunHandle

    run = Runner(config, _store(config), RunHandle(), dry=True)
    RECIPES[config.recipe](run, config, data)
    return run.steps


def _store(config: Config) -> Store:
    from pmm_ray.artefacts import Store

    root = Path(config.store)
    # A submitted job runs in a copy of its working directory that Ray throws away.
    if not root.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise UserError(
            f"store={config.store}: a submitted job needs an absolute path, e.g. store=/data/{config.store}"
        )
    return Store(root.resolve())


def _load_data(config: Config) -> Dataset:
    from pmm_ray.data.load import load_dataset

    return load_dataset(cache=_store(config).root / "digests", **dict(config.data))


def _report(config: Config, data: Dataset, scores: Sequence[Score], handle: RunHandle) -> None:
    """The table on the screen, in the store as Markdown and CSV, and in MLflow."""
    from rich.console import Console

    from pmm_ray.files import write_atomic
    from pmm_ray.report.tables import ablation_table, cycle_table, seeds_table

    if data.train.truth is None and (data.val is None or data.val.truth is None):
        print(f"nothing was scored: {data.name} has no ground truth")
        return
    note = protocol(config, data)
    if config.recipe == "ablation":
        tables = {"ablation": ablation_table(scores, note=note), "seeds": seeds_table(scores)}
    else:
        tables = {"cycles": cycle_table(scores, note=note)}
    for name, table in tables.items():
        Console(width=None if sys.stdout.isatty() else 160).print(table.rich())
        handle.table(name, table.records())
        path = _store(config).root / "tables" / f"{config.name}-{name}.md"
        write_atomic(path, table.markdown())
        write_atomic(path.with_suffix(".csv"), table.csv())
        handle.artifact(path, "tables")
        print(f"table: {path}")


def protocol(config: Config, data: Dataset) -> str:
    """One line that says on what the figures of a table were measured."""
    parts = []
    if data.train.truth is not None:
        labels = "image-level labels given"
        parts.append(f"train masks: {len(data.train.photos)} images of {data.train.name}, {labels}")
    if data.val is not None and data.val.truth is not None:
        parts.append(f"val: {len(data.val.photos)} images of {data.val.name}, no labels given")
    truth = data.train.truth or (data.val.truth if data.val else None)
    if truth is not None:
        parts.append(f"ground truth {truth.protocol}, 255 left out, mIoU in % over the classes it holds")
    if config.cycles.checkpoint == "best_val":
        parts.append("networks' checkpoints were chosen on the ground truth of val, so their scores there are too good")
    return f"{data.name}. {'; '.join(parts)}. 'best' was chosen on that ground truth."


def _tell_problems(data: Dataset, run: Runner) -> None:
    lines = [f"{problem.name}: {problem.why}" for problem in data.problems]
    lines += [f"{failure.image} ({failure.stage}): {failure.why}" for failure in run.failures]
    if lines:
        print(f"\n{len(lines)} images or entries were left out:", *lines[:50], sep="\n  ")
        if len(lines) > 50:
            print(f"  ... and {len(lines) - 50} more, in the stages' manifest.json")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
