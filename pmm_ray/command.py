"""What the command lines share: their words, the store and the data set of a config, and how they end."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pmm_ray.errors import UserError, no_room

if TYPE_CHECKING:
    from pmm_ray.artefacts import Store
    from pmm_ray.config import Config
    from pmm_ray.data.dataset import Dataset, Problem
    from pmm_ray.pipeline import Failure, Network, Step


def run_command(
    arguments: Sequence[str] | None,
    work: Callable[..., None],
    *,
    program: str,
    usage: str,
    keys: Callable[[], str],
    first: Mapping[str, str] = {},
) -> int:
    """Parse a command line of config files, overrides and --dry-run, and call `work(files, overrides, dry_run)`.

    `first` names words that must come before those, with their meaning, and `work` gets them first too.

    Returns:
        The exit code: 0 done, 1 an error that the user can correct, 130 interrupted.
    """
    parser = argparse.ArgumentParser(program, usage=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = f"keys, with their defaults:\n\n{keys()}"
    for name, meaning in first.items():
        parser.add_argument(name, help=meaning)
    parser.add_argument(
        "words", nargs="*", default=[], metavar="FILE.yaml | section.key=value", help="settings, in any order"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the settings and what would run, and stop")
    options = parser.parse_intermixed_args(arguments)
    files = [word for word in options.words if word.endswith((".yaml", ".yml"))]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        overrides = [word for word in options.words if word not in files]
        work(*(getattr(options, name) for name in first), files, overrides, options.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        why = no_room(error, "the store")
        if why is None:
            raise
        print(f"error: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def open_store(config: Config) -> Store:
    """The store that the config names: a local folder, or a place in object storage, which is not asked yet.

    Raises:
        UserError: a relative path in a submitted job.
    """
    from pmm_ray.artefacts import Store

    return Store(lasting_folder(config.store, "store"))


def lasting_folder(where: str, key: str) -> Path:
    """The folder `where`, which need not exist, for results. `key` is what the user named it by.

    Raises:
        UserError: a relative path in a submitted job.
    """
    from pmm_ray.places import Remote, place

    folder = place(where)
    # A submitted job runs in a copy of its working directory that Ray throws away.
    if not isinstance(folder, Remote) and not folder.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise UserError(f"{key}={where}: a submitted job needs an absolute path, e.g. {key}=/data/{where}, or a URL")
    return folder.resolve()


def load_data(config: Config) -> Dataset:
    """The data set that the config names; what had to be left out of it is told now, not after hours of work.

    Raises:
        UserError: it cannot be read, or the store that remembers its hashes does not answer.
    """
    from pmm_ray.data.load import load_dataset
    from pmm_ray.places import Remote

    store = open_store(config)
    if isinstance(store.root, Remote):
        store.root.check()
    data = load_dataset(cache=store.digests, **dict(config.data))
    tell_problems(data.problems)
    tell_notes(data.notes)
    return data


def protocol(config: Config, data: Dataset) -> str:
    """One line that says on what the figures of a table were measured."""
    from pmm_ray.config import SEGMENTATION_CRF

    parts = []
    if data.train.truth is not None:
        labels = "image-level labels given"
        parts.append(f"train masks: {data.train.known} images of {data.train.name}, {labels}")
    if data.val is not None and data.val.truth is not None:
        parts.append(f"val: {data.val.known} images of {data.val.name}, no labels given")
    truth = data.train.truth or (data.val.truth if data.val else None)
    if truth is not None:
        parts.append(
            f"ground truth {truth.protocol}, 255 of it left out (of a mask: wrong), mIoU in % over the classes it holds"
        )
    if config.recipe.startswith("rrm"):
        parts.append("train masks of a network in one step are its own")
        if config.eval.crf:
            parts.append(f"val + CRF: {config.rrm.crf.words} in one step, {SEGMENTATION_CRF.words} otherwise")
    if config.eval.boundary:
        parts.append(f"along outlines: within {config.eval.boundary:g} of the diagonal")
    if config.cycles.checkpoint == "best_val" and config.recipe != "rrm":
        parts.append("networks' checkpoints were chosen on the ground truth of val, so their scores there are too good")
    return f"{data.name}. {'; '.join(parts)}. 'best' was chosen on that ground truth."


def tell_plan(steps: Iterable[Step]) -> None:
    """One line for each stage: whether it is done, and where its artefact is."""
    for step in steps:
        print(f"{'done     ' if step.was_done else 'would run'}  {step.title:<60} {step.artefact.path}")


def tell_network(network: Network) -> None:
    """Say where a trained network is, and how to use it."""
    from pmm_ray.config import PredictConfig
    from pmm_ray.flat import text
    from pmm_ray.stages.stage import MODEL

    file, usual = str(network.model.path / MODEL), PredictConfig()
    changes = [f"predict.{name}={text(value)}" for name, value in network.predict if value != getattr(usual, name)]
    print(f"\nnetwork ({network.title}): {file}\nmasks of other photos by it:")
    print(f"  python -m pmm_ray.predict {shlex.quote(file)} PHOTOS OUT {shlex.join(changes)}".rstrip())


def tell_problems(problems: Iterable[Problem]) -> None:
    """List what a data set holds that cannot be used."""
    found = list(problems)
    lines = [f"{problem.name}: {problem.why}" for problem in found]
    _tell(f"{sum(problem.count for problem in found)} entries of the data set were left out", lines)


def tell_notes(notes: Iterable[Problem]) -> None:
    """List what a data set holds that may be wrong."""
    _tell(
        "look at these of the data set, nothing was left out for them", [f"{note.name}: {note.why}" for note in notes]
    )


def tell_failures(failures: Iterable[Failure], *, more: str = "the stages' manifest.json") -> None:
    """List the images that stages could not use, each once; `more` has all of them where they are many."""
    of_image: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        of_image[failure.image].append(failure)
    lines = [
        f"{image} ({', '.join(failure.stage for failure in found)}): {found[0].why}"
        for image, found in of_image.items()
    ]
    _tell(f"{len(lines)} image{'s were' if len(lines) > 1 else ' was'} left out", lines, rest=f", in {more}")


def _tell(what: str, lines: Sequence[str], *, rest: str = "") -> None:
    if lines:
        print(f"\n{what}:", *lines[:50], sep="\n  ")
        if len(lines) > 50:
            print(f"  ... and {len(lines) - 50} more{rest}")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
