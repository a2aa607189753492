"""``python -m pmm_ray.predict MODEL PHOTOS OUT [section.key=value ...]``: masks of any photos by a trained network."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pmm_ray import settings
from pmm_ray.command import lasting_folder, run_command, tell_failures, tell_problems
from pmm_ray.config import ApplicationConfig
from pmm_ray.errors import UserError

_USAGE = """\
python -m pmm_ray.predict MODEL PHOTOS OUT [FILE.yaml ...] [section.key=value ...] [--dry-run]

Masks of photos by a trained segmentation network, as palette PNGs below OUT/masks. No labels are needed.
Run the same line again, after an interruption or with more photos, and only the masks that are missing are made."""

_WORDS = {
    "MODEL": "model.pt of a training, or the folder that it is in (runs/train_seg/..., runs/train_rrm/...)",
    "PHOTOS": "a folder of images of any depth, one image, or a text file with the path of an image per line",
    "OUT": "folder for the masks: a new one, or that of an earlier call with the same model and settings",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 an error that the user can correct, 130 interrupted."""
    return run_command(arguments, _work, program="pmm_ray.predict", usage=_USAGE, keys=_describe, first=_WORDS)


def _describe() -> str:
    return settings.describe(ApplicationConfig)


def _work(model: str, photos: str, out: str, files: list[str], overrides: list[str], dry_run: bool) -> None:
    key, equals, _ = out.partition("=")
    if equals and key in dict(settings.all_keys(ApplicationConfig)):
        raise UserError(f"OUT={out}: is a setting; give a folder for the masks before the settings")
    config = settings.load_application(files, overrides)
    # torch takes seconds to come; what is wrong with the settings is told before
    from pmm_ray.application import MaskFolder, Trained
    from pmm_ray.data.problems import Problems
    from pmm_ray.data.unlabelled import read_photos
    from pmm_ray.pipeline import only_one
    from pmm_ray.places import place

    folder = MaskFolder(lasting_folder(out, "OUT"), Trained.of(model), config)
    problems = Problems()
    found = read_photos(place(photos).resolve(), problems, skip=[folder.path])
    if dry_run:
        print(settings.to_yaml(config))
        print(f"{len(found)} photos, of which {len(folder.done(found))} have their mask -> {folder.masks}")
        return
    tell_problems(problems.listed())
    with only_one(folder.path, "masks"):
        failures = folder.fill(found)
    tell_failures(failures, more=str(folder.path / "rows.parquet"))


if __name__ == "__main__":
    sys.exit(main())
