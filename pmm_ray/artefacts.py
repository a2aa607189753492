"""What stages hand to each other: folders with a manifest, named by what they were made from.

An artefact's fingerprint is a hash of its stage, this package's version, the settings that the stage reads, the
fingerprints of its inputs and, where chance plays a part, the seed. So equal work is found done, a changed setting
changes only what depends on it, and a folder without a manifest is work that was interrupted and goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from pmm_ray import __version__
from pmm_ray.data.fingerprint import DIGESTS, ContentHashes
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic
from pmm_ray.places import Remote, place

MANIFEST = "manifest.json"
_PACKAGES = (
    "pmm-ray",
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "ray",
    "numpy",
    "numba",
    "scipy",
    "pillow",
    "pymatting",
    "pycocotools",
    "pydensecrf2",
)


class Fingerprinted(Protocol):
    """Anything a stage may take as input: an artefact, photos, ground truth."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content."""
        ...


@dataclass(frozen=True)
class Artefact:
    """One stage's output folder, finished or not."""

    stage: str
    fingerprint: str
    path: Path

    @property
    def done(self) -> bool:
        """Whether the stage has finished."""
        return (self.path / MANIFEST).exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """Settings, inputs, seed, commit, versions and `facts` (what the stage reported), of a finished artefact."""
        return json.loads((self.path / MANIFEST).read_text())

    @property
    def facts(self) -> dict[str, Any]:
        """The figures the stage reported."""
        return self.manifest["facts"]


def digest(value: Any) -> str:
    """Hash of a JSON-able value, 64 hex digits, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hash of a file's content, 64 hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(path, Remote):
        return _digest_object(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _digest_object(path: Remote) -> str:
    """The same of an object; once in each process, since it has to be fetched."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Folder:
    """Files made elsewhere, as a stage's input. The fingerprint covers their names and contents."""

    path: Path
    fingerprint: str

    @classmethod
    def of(cls, path: str, *, cache: Path) -> Folder:
        """Look a folder over; `cache` remembers the hashes of its files.

        Raises:
            UserError: there is no such folder, nothing in it, or a file that cannot be read.
        """
        root = place(path)
        if not root.is_dir():
            raise UserError(f"cam.npy={path}: no such folder; give the folder of the .npy files")
        root = root.resolve()
        if isinstance(root, Remote):
            files = sorted(root.all_files())
        else:
            files = sorted(file for file in root.rglob("*") if file.is_file())
        if not files:
            raise UserError(f"cam.npy={path}: the folder is empty; give the folder of the .npy files")
        hashes = ContentHashes.below(root, cache=cache).of(map(str, files))
        for file, found in hashes.items():
            if isinstance(found, OSError):
                raise UserError(f"{file}: {found.strerror or found}; repair the file or take it out of the folder")
        return cls(root, digest([(str(file.relative_to(root)), hashes[str(file)]) for file in files]))


@dataclass(frozen=True)
class Store:
    """A folder of artefacts, local or in object storage. Runs share it, so equal work is done once."""

    root: Path

    @property
    def digests(self) -> Path:
        """Where hashes of files are remembered."""
        return self.root / DIGESTS

    def artefact(
        self, stage: str, *, settings: Mapping[str, Any], inputs: Mapping[str, Fingerprinted | None], seed: int | None
    ) -> Artefact:
        """The artefact that `stage` makes of these inputs, made or not. `seed` is None where chance plays no part."""
        fingerprint = digest(_identity(stage, settings, inputs, seed))
        return Artefact(stage, fingerprint, self.root / stage / fingerprint[:12])

    def finish(
        self,
        artefact: Artefact,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Fingerprinted | None],
        seed: int | None,
        facts: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Write the manifest, which is what makes an artefact finished."""
        manifest = _identity(artefact.stage, settings, inputs, seed) | {
            "fingerprint": artefact.fingerprint,
            "facts": dict(facts),
            "seconds": round(seconds, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "commit": commit(),
            "versions": versions(),
        }
        write_atomic(artefact.path / MANIFEST, json.dumps(manifest, indent=1, default=str))


def _identity(
    stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Fingerprinted | None], seed: int | None
) -> dict[str, Any]:
    return {
        "stage": stage,
        "version": __version__,
        "settings": dict(settings),
        "inputs": {name: value.fingerprint for name, value in inputs.items() if value is not None},
        "seed": seed,
    }


@cache
def commit() -> str:
    """The source's git commit with '+' if the tree is dirty, or 'unknown' outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


@cache
def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
