"""Imports point down; Ray, MLflow, pydensecrf and numba have one home each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pmm_ray"
SCIENCE = (
    *("data", "masks", "nets", "losses", "metrics.py"),
    *("training.py", "teams.py", "checkpoints.py", "inference.py"),
)
# The compiled CRF.
ENGINE = ("jit", "vectors", "lattice", "meanfield")
# From the ground up. A module may import from its own floor and from those below.
FLOORS = (
    ("errors", "files", "flat", "places", "__init__", "progress"),
    SCIENCE,
    ("config", "artefacts", "cluster", "tracking", "report", "settings"),
    ("stages",),
    ("pipeline",),
    ("method", "application"),
    ("recipes", "search"),
    ("command",),
    ("run", "sweep", "predict"),
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module name imported anywhere in a file, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "pmm_ray":
                names |= {f"pmm_ray.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return names


def floor(module: str) -> int:
    """The floor of 'data/voc.py' or 'pmm_ray.data.voc'."""
    top = module.removeprefix("pmm_ray.").replace("/", ".").split(".")[0]
    return next(n for n, names in enumerate(FLOORS) if top in {name.removesuffix(".py") for name in names})


def test_the_walk_sees_the_package():
    assert len(modules()) > 20
    assert "pmm_ray.config" in imported(PACKAGE / "pipeline.py")
    assert "pmm_ray.checkpoints" in imported(PACKAGE / "stages/fitting.py")  # from pmm_ray import checkpoints


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("ray", ("cluster/",)),
        ("mlflow", ("tracking.py",)),
        ("fsspec", ("places.py",)),
        ("pydensecrf", ("masks/pydense.py",)),
        ("pymatting", ("masks/laplacian.py",)),
        ("numba", tuple(f"masks/{name}.py" for name in ENGINE)),
        ("llvmlite", ("masks/vectors.py",)),
    ],
)
def test_only_its_home_imports_a_library(library, homes):
    users = [
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name == library or name.startswith(f"{library}.") for name in imported(path))
    ]
    assert users, f"nobody imports {library}"
    assert [user for user in users if not user.startswith(homes)] == []


def test_the_crf_is_imported_without_its_compiler():
    # half a second for every process, and a library that a machine which only trains need not have
    script = "import sys, pmm_ray.masks.crf; print({name.split('.')[0] for name in sys.modules} & {*sys.argv[1:]})"
    command = [sys.executable, "-c", script, "numba", "llvmlite", "pydensecrf"]
    found = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_science_knows_neither_config_nor_artefacts():
    known = {
        str(path.relative_to(PACKAGE)): name
        for path in modules()
        if str(path.relative_to(PACKAGE)).startswith(SCIENCE)
        for name in imported(path)
        if name in ("pmm_ray.config", "pmm_ray.artefacts", "pmm_ray.tracking") or name.startswith("pmm_ray.stages")
    }
    assert known == {}


def test_imports_point_down():
    up = [
        (str(path.relative_to(PACKAGE)), name)
        for path in modules()
        for name in imported(path)
        if name.startswith("pmm_ray.") and floor(name) > floor(str(path.relative_to(PACKAGE)).removesuffix(".py"))
    ]
    assert up == []
