"""Errors name keys that exist."""

import ast
import re
from pathlib import Path

import pytest

from pmm_ray import settings
from pmm_ray.config import Config, SweepConfig
from pmm_ray.errors import SettingError, UserError, within

PACKAGE = Path(__file__).resolve().parents[1] / "pmm_ray"
KEYS = [name for name, _ in (*settings.all_keys(), *settings.all_keys(SweepConfig, "sweep."))]
KEYS.append("sweep.space")
WITHIN = ("cam", "seg", "rrm")
"""Sections that a SettingError may be of."""


def raised() -> list[tuple[str, str, str]]:
    """(module and line, error, dotted key) wherever the package raises an error whose text names a key."""
    pattern = re.compile(rf"\b(?:{'|'.join((*Config.model_fields, 'sweep', 'net', 'train'))})(?:\.[a-z_0-9]+)+")
    return [
        (f"{path.relative_to(PACKAGE)}:{text.lineno}", ast.unparse(error.exc.func), key)
        for path in sorted(PACKAGE.rglob("*.py"))
        for error in ast.walk(ast.parse(path.read_text()))
        if isinstance(error, ast.Raise) and isinstance(error.exc, ast.Call)
        for text in ast.walk(error)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
        for key in pattern.findall(text.value)
    ]


def test_every_key_that_an_error_names_exists():
    found = raised()
    assert len(found) > 20
    for where, error, key in found:
        for name in [f"{section}.{key}" for section in WITHIN] if error == "SettingError" else [key]:
            assert any(f"{known}.".startswith(f"{name}.") for known in KEYS), f"{where}: {name}"


def test_a_setting_of_a_section_is_told_with_it_and_another_error_as_it_is():
    with pytest.raises(UserError, match=r"^seg\.net\.weights=x: no such file$"), within("seg"):
        raise SettingError("net.weights=x: no such file")
    with pytest.raises(UserError, match=r"^x\.jpg: truncated$"), within("seg"):
        raise UserError("x.jpg: truncated")
