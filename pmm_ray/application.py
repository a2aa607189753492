"""A trained network applied to photos: a folder of masks, made once each, that never mixes two models or settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pmm_ray import __version__
from pmm_ray.artefacts import Artefact, digest_file
from pmm_ray.cluster.journal import OK, Journal
from pmm_ray.cluster.session import session
from pmm_ray.config import ApplicationConfig, CrfConfig
from pmm_ray.data.dataset import Classes, Photo, Photos
from pmm_ray.data.fingerprint import ContentHashes, fingerprint
from pmm_ray.data.listing import PREDICTED
from pmm_ray.data.splits import make_classes
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic
from pmm_ray.flat import flatten, text
from pmm_ray.nets.build import model_info
from pmm_ray.pipeline import Failure, say
from pmm_ray.places import Remote, place
from pmm_ray.report.overlays import contact_sheet, write_picture
from pmm_ray.stages.draw_overlays import draw_sheets
from pmm_ray.stages.mask_files import MASK_FACTS, MASKS, mask_file
from pmm_ray.stages.predict_masks import write_masks
from pmm_ray.stages.stage import MODEL, Context
from pmm_ray.tracking import RunLog

RECORD, CLASSES = PREDICTED
OVERLAYS = "overlays.png"
_SEGMENTS = ("segmenter", "joint")
"""Kinds of models that give masks."""

_SHOWN = 50
"""Characters of a setting in a message."""


@dataclass(frozen=True)
class Trained:
    """A model file that gives masks, and the classes it was trained with, in VOC's colours as in all data sets."""

    file: Path
    classes: Classes

    @classmethod
    def of(cls, where: str) -> Trained:
        """The model that a path or URL names: the file, or the folder that it is in.

        Raises:
            UserError: there is none, or it is a classifier.
        """
        file = place(where).resolve()
        if file.is_dir():
            if not (file / MODEL).is_file():
                raise UserError(f"{where}: no {MODEL} in this folder; give a folder below train_seg or train_rrm")
            file = file / MODEL
        info = model_info(file)
        if info["kind"] not in _SEGMENTS:
            raise UserError(f"{where}: a {info['kind']} gives no masks; give a model of train_seg or train_rrm")
        return cls(file, make_classes(tuple(info["classes"][1:])))


class MaskFolder:
    """`masks/` with a palette PNG for each photo, `classes.json`, and `predict.json`: of what they were made.

    A mask is done if the journal says so, the file is there, and its photo still has the content it was made from.
    """

    def __init__(self, path: Path, trained: Trained, config: ApplicationConfig):
        """`path` is absolute and need not exist.

        Raises:
            UserError: it holds something else, or masks by another model or with other settings.
        """
        self.path, self.masks = path, path / MASKS
        self._trained, self._config = trained, config
        made_by = {"model": digest_file(trained.file), "version": __version__, **config.identity()}
        self._made_by = json.loads(json.dumps(flatten(made_by)))
        self._hashes = ContentHashes(path / ".content.json")
        self._record()

    def done(self, photos: Sequence[Photo]) -> set[str]:
        """Names of the photos that have their mask."""
        made_of = self._record()
        return self._done(self._contents(photos), made_of) if made_of else set()

    def _done(self, contents: Mapping[str, str], made_of: Mapping[str, str]) -> set[str]:
        known = Journal(self.path, MASK_FACTS).read().select(["name", "status"]).to_pylist()
        ok = {row["name"] for row in known if row["status"] == OK} & self._present()
        return {name for name, content in contents.items() if name in ok and made_of.get(name) == content}

    def fill(self, photos: Sequence[Photo]) -> list[Failure]:
        """Make the masks that are missing, and the pictures of some; the photos that could not be used.

        Raises:
            UserError: no photo got a mask.
        """
        config, contents = self._config, self._contents(photos)
        made_of = self._record()
        done = self._done(contents, made_of)
        anew = {name for name, content in made_of.items() if contents.get(name, content) != content}
        self._begin(contents, made_of, {photo.name for photo in photos}, done)
        # With nothing to do there is no need of Ray.
        idle = {"infer_workers": 0, "gpu": "no"} if len(done) == len(photos) else {}
        cluster = config.cluster.model_copy(update=idle)
        with session(cluster) if cluster.infer_workers != 0 else nullcontext():
            given = Photos(tuple(photos), self._trained.classes, fingerprint(contents))
            facts = write_masks(
                photos=given,
                model=self._trained.file,
                predict=config.predict,
                label_filter=False,
                crf=None if config.crf == "none" else CrfConfig(preset=config.crf),
                raw=False,
                context=Context(self.path, 0, cluster, RunLog(), "masks"),
            )
        before = f", {len(done)} of them before" if done else ""
        before += f", {len(anew)} anew, for another photo is there under the name" if anew else ""
        say(f"masks of {facts['images']} of {len(photos)} photos{before} -> {self.masks}")
        return [Failure("masks", name, why) for name, why in [*facts["failed"], *self._draw(given)]]

    def _draw(self, photos: Photos) -> list[list[str]]:
        """Write the pictures; [name, why] of photos that cannot be drawn."""
        masks = Artefact("predict_masks", "", self.path)
        drawn, failed = draw_sheets(
            photos=photos, cams=None, masks=masks, folder=MASKS, truth=None, count=self._config.overlays
        )
        if drawn:
            write_picture(contact_sheet(sheet for _, sheet, _ in drawn), self.path / OVERLAYS)
            say(f"overlays of {len(drawn)} -> {self.path / OVERLAYS}")
        return failed

    def _record(self) -> Mapping[str, str]:
        """Name -> content of the photo that each mask was begun from; none in a new folder."""
        try:
            record = json.loads((self.path / RECORD).read_text())
            made_by, made_of = record["made_by"], record["photos"]
        except (OSError, ValueError, KeyError, TypeError):
            if not _empty(self.path):
                raise UserError(f"{self.path}: is not empty and no earlier output; give a new folder as OUT") from None
            return {}
        changed = [
            f"{key}={text(made_by.get(key))[:_SHOWN]}, not {text(value)[:_SHOWN]}"
            for key, value in self._made_by.items()
            if made_by.get(key) != value
        ]
        if changed:
            raise UserError(f"{self.path}: made with {'; '.join(changed)}: give another OUT, or delete this one")
        return made_of

    def _begin(self, contents: Mapping[str, str], made_of: Mapping[str, str], asked: set[str], done: set[str]) -> None:
        """Forget what is to be done, also what an earlier photo of that name left; then say of what all is made.

        Masks of photos that are not asked for this time stay, and what is known of them.
        """
        present, todo = self._present(), asked - done
        others = {name: content for name, content in made_of.items() if name in present - asked}
        Journal(self.path, MASK_FACTS).keep(present - todo)
        for name in present & todo:
            mask_file(self.path, MASKS, name).unlink(missing_ok=True)
        record = {"model": str(self._trained.file), "made_by": self._made_by, "photos": {**others, **contents}}
        # First of all files that are to be seen: what is in a folder with this one is known to be ours.
        write_atomic(self.path / RECORD, json.dumps(record, indent=1))
        classes = self._trained.classes
        listed = [
            json.dumps({"id": number, "name": name, "colour": colour}, ensure_ascii=False)
            for number, (name, colour) in enumerate(zip(classes.names, classes.palette, strict=True))
        ]
        write_atomic(self.path / CLASSES, "[\n{}\n]\n".format(",\n".join(listed)))

    def _contents(self, photos: Sequence[Photo]) -> dict[str, str]:
        """Name -> hash of the file, of photos that can be read; the others will say so when it is their turn."""
        hashes = self._hashes.of(photo.image for photo in photos)
        return {photo.name: found for photo in photos if isinstance(found := hashes[photo.image], str)}

    def _present(self) -> set[str]:
        """Names of the mask files that are there."""
        files = self.masks.all_files() if isinstance(self.masks, Remote) else self.masks.rglob("*.png")
        return {"/".join(file.relative_to(self.masks).parts).removesuffix(".png") for file in files}


def _empty(folder: Path) -> bool:
    """Whether nothing is to be seen there, nor a file of that name."""
    return not folder.exists() or (folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir()))
