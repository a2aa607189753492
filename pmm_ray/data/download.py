"""Fetch PASCAL VOC 2012: `python -m pmm_ray.data.download ROOT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pmm_ray.errors import UserError

_IMAGES = 17125  # of the complete archive


def download_voc(root: Path) -> Path:
    """Download (2 GB) and unpack VOC 2012 below `root` unless it is there; return the data set's folder.

    Raises:
        UserError: no network, or the server does not answer as it should.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    if (folder / "JPEGImages").is_dir() and sum(1 for _ in (folder / "JPEGImages").glob("*.jpg")) >= _IMAGES:
        return folder
    from torchvision.datasets import VOCSegmentation

    try:
        root.mkdir(parents=True, exist_ok=True)
        VOCSegmentation(str(root), year="2012", image_set="trainval", download=True)
    except (OSError, RuntimeError) as error:
        advice = f"try again, or unpack VOCtrainval_11-May-2012.tar in {root} yourself"
        raise UserError(f"VOC 2012 could not be fetched ({error}): {advice}") from None
    return folder


def advice(folder: Path) -> str:
    """What the download lacks and where it goes, and how to use the data set."""
    trainaug, masks = folder / "ImageSets/Segmentation/trainaug.txt", folder / "SegmentationClassAug"
    lines = [f"VOC 2012 is in {folder} (lists train 1464 and val 1449, labels from Annotations/*.xml)."]
    if not trainaug.exists():
        lines.append(f"The 10,582-image list is not part of it: put trainaug.txt of the SBD set at {trainaug}.")
    if not masks.is_dir():
        lines.append(
            f"The SBD masks, for evaluation only, go to {masks}/<name>.png; use: data.masks=SegmentationClassAug"
        )
    lines.append(
        f"Use it: python -m pmm_ray.run conf/recipe/pmm.yaml conf/data/voc.yaml data.root={folder}"
        + (" data.train_list=ImageSets/Segmentation/trainaug.txt" if trainaug.exists() else "")
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 if the data set is there in the end, 1 with one line on stderr if not."""
    parser = argparse.ArgumentParser(prog="python -m pmm_ray.data.download", description="Download PASCAL VOC 2012.")
    parser.add_argument("root", type=Path, help="folder to unpack into; the data set is ROOT/VOCdevkit/VOC2012")
    try:
        print(advice(download_voc(parser.parse_args(arguments).root)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
