"""What a sweep says at its end: tables, pictures, and the best setting as a config file."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pmm_ray import settings
from pmm_ray.artefacts import Artefact
from pmm_ray.errors import UserError
from pmm_ray.files import readable, write_atomic
from pmm_ray.pipeline import Failure
from pmm_ray.places import place
from pmm_ray.report.heat_map import heat_map
from pmm_ray.report.sweep_figures import history, importance_bars, slices
from pmm_ray.report.sweeps import Tried as Shown
from pmm_ray.report.sweeps import best_against_default, importance, written
from pmm_ray.report.tables import Column, Table
from pmm_ray.search.choice import Choice, by_few, counts_of, rank_correlation
from pmm_ray.search.conduct import Sweep
from pmm_ray.search.record import Record, Tried
from pmm_ray.search.trials import SCORES_FILE
from pmm_ray.tracking import RunHandle

_LISTED = 10
"""Settings in the table on the screen; all are in the file."""
_FEW = (10, 20, 40)
"""Photos with ground truth by which a choice is tried."""
_DRAWS = 200


def tell_results(sweep: Sweep, record: Record, handle: RunHandle) -> None:
    """Tables on the screen, in the sweep's folder and in MLflow; pictures likewise; `best.yaml`."""
    note = protocol(sweep, record)
    tables = {"settings": _settings_table(sweep, record.all, note), "best": _best_table(sweep, record, note)}
    if choices := _choices(sweep, record):
        tables["choice"] = _choice_table(choices)
    for name, table in tables.items():
        whole = table if name != "settings" else _settings_table(sweep, record.all, note, most=None)
        path = sweep.folder / f"{name}.md"
        write_atomic(path, whole.markdown())
        write_atomic(path.with_suffix(".csv"), whole.csv())
        handle.table(name, whole.records())
        handle.artifact(path, "tables")
        _print(table)
    for path in _pictures(sweep, record.all):
        handle.picture(path, f"sweep/{path.name}")
    _tell_failures(record)
    best = record.best()
    if best is None:
        failed = next((one for one in record.all if one.error), None)
        why = f"; setting {failed.number}: {failed.error}" if failed else ""
        raise UserError(f"no setting of {len(record.all)} was tried on all of the work, so there is no best one{why}")
    handle.metrics({"best score": best.score or 0.0} | {f"best/{name}": value for name, value in best.figures.items()})
    path = _write_best(sweep, best, note, tried=len(record.all))
    handle.artifact(path)
    print(f"best setting: {path}\n  python -m pmm_ray.run {path}")


def protocol(sweep: Sweep, record: Record) -> str:
    """One line that says what the score is; the photos are those that the best setting was scored on."""
    data, facts = sweep.data, _facts(record.best())
    if sweep.how.metric == "contrast":
        count = facts.get("images", len(data.train.photos))
        return (
            f"{data.name}: contrast of the masks of {count} training images, the geometric mean of "
            "the shares of variance of CAMs and colours that a mask explains; no ground truth"
        )
    split = data.train if sweep.how.metric == "masks" else data.val
    assert split is not None and split.truth is not None
    known = facts.get("scored", split.known)
    labels = "image-level labels given" if sweep.how.metric == "masks" else "no labels given"
    what = "pseudo-masks" if sweep.how.metric == "masks" else "predictions"
    return (
        f"{data.name}: mIoU of {what} on {known} images of {split.name}, {labels}, ground truth "
        f"{split.truth.protocol}, 255 of it left out; the best was chosen on it"
    )


def left_out(record: Record) -> list[Failure]:
    """The photos that the best setting of masks failed on."""
    best = record.best()
    return [Failure(f"setting {best.number}", *failed) for failed in _facts(best).get("failed", [])] if best else []


def _facts(tried: Tried | None) -> dict[str, Any]:
    """What was noted when a setting's masks were scored; nothing of a training."""
    return Artefact("score_masks", "", place(tried.artefact)).facts if tried and tried.artefact else {}


def _label(sweep: Sweep) -> str:
    return {"masks": "mIoU/train masks", "contrast": "contrast", "val": "mIoU/val"}[sweep.how.metric]


def _shown(tried: Sequence[Tried]) -> list[Shown]:
    return [Shown(one.values, one.score, one.share, one.default) for one in tried]


def _settings_table(sweep: Sweep, tried: Sequence[Tried], note: str, most: int | None = _LISTED) -> Table:
    """The settings by their scores, complete ones first, the default last if it is not among them."""
    ordered = sorted(tried, key=lambda one: (one.ending == "done", one.score or -1.0), reverse=True)
    listed = ordered[:most]
    listed += [one for one in ordered[len(listed) :] if one.default]
    keys = sweep.space.keys
    others = _telling(tried, score=_label(sweep))
    columns = [Column("setting", "text"), Column(_label(sweep)), Column("share"), Column("ending", "text")]
    columns += [Column(name) for name in others] + [Column(key, "text") for key in keys]
    rows = [
        (
            f"{one.number}{' (default)' if one.default else ''}",
            one.score,
            one.share,
            one.ending,
            *(one.figures.get(name) for name in others),
            *(written(one.values.get(key)) for key in keys),
        )
        for one in listed
    ]
    title = f"{len(tried)} settings" + (f", the best {len(rows)}" if len(rows) < len(tried) else "")
    return Table(title, tuple(columns), tuple(rows), note)


def _telling(tried: Sequence[Tried], *, score: str) -> list[str]:
    """Figures that tell settings apart, and not as the score or another one does (few classes: all are frequent)."""

    def values(name: str) -> tuple[float | None, ...]:
        return tuple(one.figures.get(name) for one in tried)

    names = {name for one in tried for name in one.figures} - {"images", "epoch", score}
    found: list[str] = []
    for name in sorted(names, key=len):
        same = values(name) in map(values, [score, *found])
        if not same and (len(tried) == 1 or len(set(values(name))) > 1):
            found.append(name)
    return sorted(found)


def _best_table(sweep: Sweep, record: Record, note: str) -> Table:
    start, best = record.find(sweep.space.own), record.best()
    names = sorted({*(start.figures if start else ()), *(best.figures if best else ())} - {"images", "epoch"})
    more = {
        name: tuple(one.figures.get(name) if one else None for one in (start, best))
        for name in names
        if name != _label(sweep)
    }
    return best_against_default(
        _shown(record.all),
        keys=sweep.space.keys,
        default=sweep.space.own,
        label=_label(sweep),
        more={name: (pair[0], pair[1]) for name, pair in more.items()},
        note=note,
    )


def _choices(sweep: Sweep, record: Record) -> list[Choice]:
    """Ways of choosing among the settings tried on all photos; none without ground truth, or of too few settings."""
    done = [one for one in record.all if one.ending == "done" and "mIoU/train masks" in one.figures]
    if sweep.how.trial != "masks" or sweep.data.train.truth is None or len(done) < 3:
        return []
    full = np.array([one.figures["mIoU/train masks"] for one in done])
    contrast = np.array([one.figures.get("contrast", 0.0) for one in done])
    files = [place(one.artefact) / SCORES_FILE for one in done]
    columns = ["name", "truth", "predicted", "pixels"]
    tables = [pq.read_table(readable(file), columns=columns).to_pydict() for file in files]
    counts = counts_of(tables, num_classes=len(sweep.data.classes), seed=sweep.how.seed)
    found = [Choice("ground truth of all photos", (float(full.max()),), 1.0)]
    for photos in (n for n in _FEW if n < counts.shape[1]):
        found.append(by_few(counts, full, photos=photos, draws=_DRAWS, seed=sweep.how.seed))
    blind = "contrast, no ground truth"
    found.append(Choice(blind, (float(full[int(contrast.argmax())]),), rank_correlation(contrast, full)))
    found += [
        Choice("no choice: the default", (one.figures["mIoU/train masks"],), float("nan"))
        for one in done
        if one.default
    ]
    return found


def _choice_table(choices: Sequence[Choice]) -> Table:
    columns = (
        Column("chosen by", "text"),
        Column("mIoU on all photos"),
        Column("5th percentile"),
        Column("rank correlation", "text"),
    )
    rows = tuple(
        (
            choice.how,
            choice.scores if len(choice.scores) > 1 else choice.scores[0],
            float(np.percentile(choice.scores, 5)) if len(choice.scores) > 1 else None,
            "-" if np.isnan(choice.rank) else f"{choice.rank:.2f}",
        )
        for choice in choices
    )
    note = (
        "Of the settings tried here; the rank correlation (Spearman's) is that of a way's scores with the first row's."
    )
    return Table("How much ground truth a choice needs", columns, rows, note)


def _pictures(sweep: Sweep, tried: Sequence[Tried]) -> Iterator[Path]:
    """Heat maps, slices, importance, history; those that the settings allow."""
    shown, keys = _shown(tried), sweep.space.keys
    if not any(one.score is not None for one in shown):
        return
    folder, label = sweep.folder / "pictures", "score, %" if sweep.how.metric == "contrast" else "mIoU, %"
    default = sweep.space.own
    history(shown, folder / "history.png", title=sweep.config.name, label=label)
    yield folder / "history.png"
    slices(shown, folder / "slices.png", keys=keys, default=default, title=sweep.config.name, label=label)
    yield folder / "slices.png"
    matters = importance(shown, keys=keys)
    if matters:
        importance_bars(matters, folder / "importance.png", title=f"{sweep.config.name}: what the score depends on")
        yield folder / "importance.png"
    for x, y in _pairs([key for key in keys if len({one.setting.get(key) for one in shown}) > 1], matters):
        path = folder / f"{x}-{y}.png"
        heat_map(shown, x, y, path, title=f"{sweep.config.name}: {x} and {y}", label=label)
        yield path


def _pairs(keys: Sequence[str], matters: dict[str, float]) -> list[tuple[str, str]]:
    """s by t, beta by kappa, the trimap's thresholds, and the two that matter most."""
    known = [("masks.s", "masks.t"), ("pus.beta", "pus.kappa"), ("masks.trimap.low", "masks.trimap.high")]
    most = sorted(matters, key=lambda key: matters[key], reverse=True)[:2]
    pairs = [pair for pair in known if set(pair) <= set(keys)]
    if len(most) == 2 and not any(set(most) == set(pair) for pair in pairs):
        pairs.append((most[0], most[1]))
    return pairs or list(itertools.islice(itertools.combinations(keys, 2), 1))


def _write_best(sweep: Sweep, best: Tried, note: str, *, tried: int) -> Path:
    """The base config with the best values, as a file that `pmm_ray.run` takes."""
    path = sweep.folder / "best.yaml"
    config = settings.changed(sweep.config, best.values | {"name": f"{sweep.config.name}-best"})
    changes = "\n".join(f"#   {key}: {written(value)}" for key, value in best.values.items())
    head = (
        f"# The best of {tried} settings, {100 * (best.score or 0):.2f} %:\n{changes}\n"
        f"# {note}\n#\n#   python -m pmm_ray.run {path}\n"
    )
    write_atomic(path, head + settings.to_yaml(config))
    return path


def _tell_failures(record: Record) -> None:
    failed = [one for one in record.all if one.ending == "failed"]
    for one in failed[:20]:
        print(f"setting {one.number} failed: {one.error}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} settings failed; the same command tries them again", file=sys.stderr)


def _print(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table.rich())
