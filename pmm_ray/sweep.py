"""``python -m pmm_ray.sweep sweeps/FILE.yaml [section.key=value ...]``: a search for settings on Ray Tune."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pmm_ray import settings
from pmm_ray.command import load_data, open_store, run_command, tell_failures, tell_plan

if TYPE_CHECKING:
    from pmm_ray.config import Config, SweepConfig
    from pmm_ray.pipeline import Step
    from pmm_ray.search.conduct import Sweep

_USAGE = """\
python -m pmm_ray.sweep sweeps/FILE.yaml [FILE.yaml ...] [section.key=value ...] [--dry-run]

Searches the space of the sweep file, and writes the best setting as a file that pmm_ray.run takes. The sweep file is
merged over its base config; further files and the overrides, of sweep.* too, come after it.
Run the same line again after an interruption, or with a larger sweep.settings, and it goes on where it stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 an error that the user can correct, 130 interrupted."""
    return run_command(arguments, _work, program="pmm_ray.sweep", usage=_USAGE, keys=_describe)


_FILE_KEYS = """\
  base=[]
      config files that the sweep file is merged over; in the sweep file alone
  sweep.space={}
      what varies, KEY: {KIND: [VALUES]} for each, the KEY as in KEY=value; null: no longer. KIND and VALUES:
        uniform: [LOWEST, HIGHEST]     any number from one to the other
        loguniform: [LOWEST, HIGHEST]  the same, evenly by their logarithms; LOWEST above 0
        int: [LOWEST, HIGHEST]         a whole number, both included
        choice: [ONE, OTHER, ...]      one of these: numbers, words, true, false or null
        grid: [ONE, OTHER, ...]        the same under another name
      e.g. sweep.space.masks.alpha='{loguniform: [0.5, 32]}'"""


def _describe() -> str:
    from pmm_ray.config import SweepConfig

    searched = f"{_FILE_KEYS}\n{settings.describe(SweepConfig, 'sweep.')}"
    return f"{searched}\n\nand those of pmm_ray.run:\n\n{settings.describe()}"


def _work(files: list[str], overrides: list[str], dry_run: bool) -> None:
    from pmm_ray.search.conduct import plan

    config, how, space = settings.load_sweep(files, overrides)
    if dry_run:
        print(settings.to_yaml(config))
    sweep = _sweep(config, how, space)
    steps = plan(sweep)
    if dry_run:
        _dry_run(sweep, steps)
    else:
        _run(sweep)


def _sweep(config: Config, how: SweepConfig, tree: settings.Tree) -> Sweep:
    from pmm_ray.search.conduct import Sweep, metric_of
    from pmm_ray.search.space import parse

    space = parse(tree, config, trial=how.trial)
    data = load_data(config)
    how = how.model_copy(update={"metric": metric_of(how, data)})
    if how.metric == "contrast":
        print(f"settings of {data.name} are ranked by contrast, which needs no ground truth")
    if how.searcher == "grid":
        next(space.grid(), None)  # says so if it is none
    return Sweep(config, how, space, data, open_store(config))


def _dry_run(sweep: Sweep, steps: Sequence[Step]) -> None:
    from pmm_ray.search.record import Record

    print(f"sweep of {sweep.how.trial}: {sweep.count} settings by {sweep.how.searcher}, best by {sweep.how.metric}")
    for dimension in sweep.space.dimensions:
        print(f"  {dimension.key:<30} {dimension.kind} {list(dimension.values)}")
    tell_plan(steps)
    print(f"{len(Record(sweep.folder).all)} tried before -> {sweep.folder}")


def _run(sweep: Sweep) -> None:
    from pmm_ray.artefacts import digest
    from pmm_ray.pipeline import Runner
    from pmm_ray.search.conduct import conduct
    from pmm_ray.search.results import left_out, tell_results
    from pmm_ray.tracking import open_tracker

    config, how = sweep.config, sweep.config.tracking
    tracker = open_tracker(enabled=how.enabled, uri=how.uri, experiment=how.experiment, store=sweep.store.root)
    tags = {"recipe": "sweep", "seed": config.seed, "data": sweep.data.name}
    params = config.model_dump() | {"sweep": sweep.how.model_dump() | {"space": sweep.described}}
    with tracker.run(config.name, tags=tags, params=params, resume_key=digest(sweep.identity)) as handle:
        run = Runner(config, sweep.store, handle)
        try:
            record = conduct(sweep, run, handle)
        finally:
            run.close()
        tell_results(sweep, record, handle)
    tell_failures([*run.failures, *left_out(record)], more="the manifest.json of the stages and of the setting")


if __name__ == "__main__":
    sys.exit(main())
