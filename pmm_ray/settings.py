"""From YAML files and ``section.key=value`` overrides to one frozen `Config`, with errors a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pmm_ray.config import ApplicationConfig, Config, Section, SweepConfig
from pmm_ray.errors import UserError
from pmm_ray.places import place

Tree = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


def load(files: Sequence[str], overrides: Sequence[str]) -> Config:
    """Merge `files` left to right, then `overrides`, over the defaults.

    Raises:
        UserError: a file is missing, no mapping, or a sweep's; a key does not exist (with the nearest one), or a value
            is out of its type or bounds; the message names the key and where it was set.
    """
    trees = {file: _read(file) for file in files}
    for file, read in trees.items():
        if read.keys() & {"sweep", "base"}:
            raise UserError(f"{file}: this is a sweep file: python -m pmm_ray.sweep {file} ...")
    return build(*_merged(trees.items(), overrides))


def load_application(files: Sequence[str], overrides: Sequence[str]) -> ApplicationConfig:
    """The same for `pmm_ray.predict`, whose keys are its own.

    Raises:
        UserError: as `load`.
    """
    tree, origin = _merged(((file, _read(file)) for file in files), overrides)
    return _validated(ApplicationConfig, tree, origin, known=[name for name, _ in all_keys(ApplicationConfig)])


def load_sweep(files: Sequence[str], overrides: Sequence[str]) -> tuple[Config, SweepConfig, Tree]:
    """A sweep: its base config, how it searches, and the tree of `sweep.space`.

    One of the files, usually the first, is the sweep file: config keys like any other file's, a section `sweep`, and
    `base`, a list of config files that come before all others. The overrides come last.

    Raises:
        UserError: as `load`.
    """
    if not files:
        raise UserError("no sweep file: python -m pmm_ray.sweep sweeps/FILE.yaml [section.key=value ...]")
    trees = {file: _read(file) for file in files}
    bases = {file: read.pop("base") for file, read in trees.items() if "base" in read}
    if len(bases) > 1:
        raise UserError(f"{' and '.join(bases)}: base: both have one; a sweep has one sweep file")
    for file, base in bases.items():
        if not isinstance(base, list) or not all(isinstance(one, str) for one in base):
            raise UserError(f"{file}: base: a list of config files, got {base!r}")
        trees = {one: _read(one) for one in base} | trees
    tree, origin = _merged(trees.items(), overrides)
    if "base" in tree:
        raise UserError("base: it stands in the sweep file; give other config files after that one")
    sweep = tree.pop("sweep", None) or {}
    if not isinstance(sweep, dict):
        raise UserError(f"sweep: a section with trial, space, searcher ..., got {sweep!r}")
    space = sweep.pop("space", None) or {}
    if not isinstance(space, dict):
        raise UserError(f"sweep.space: a section of keys and their ranges, got {space!r}")
    config = _validated(Config, tree, origin, known=_SWEEP_KEYS)
    return config, _validated(SweepConfig, sweep, origin, prefix="sweep", known=_SWEEP_KEYS), space


def changed(config: Config, values: Mapping[str, Any], *, source: str = "sweep") -> Config:
    """The config with other values for some dotted keys.

    Raises:
        UserError: as `build`.
    """
    tree = config.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return build(tree, dict.fromkeys(values, source))


def build(tree: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> Config:
    """Validate a nested dictionary; `origin` says where each dotted key was set, for the error message."""
    return _validated(Config, tree, origin or {}, known=_KEYS)


def _validated(
    model: type[M], tree: Mapping[str, Any], origin: Mapping[str, str], *, known: Sequence[str], prefix: str = ""
) -> M:
    """`known` are the keys that the running program has, one of which a misspelt one may stand for."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines: dict[str, str] = {}
        for item in error.errors():
            key = _written([*filter(None, [prefix]), *map(str, item["loc"])], origin)
            # One line for each key: a second error of the same one follows from the first.
            lines.setdefault(key, _explain(key, item, origin, known))
        raise UserError("\n".join(lines.values())) from None


def to_yaml(config: Section) -> str:
    """The resolved config as a YAML file that `load` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field, depth first, in the schema's order."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


_KEYS = tuple(name for name, _ in all_keys())
_SWEEP_KEYS = (*_KEYS, *(name for name, _ in all_keys(SweepConfig, "sweep.")))


def describe(model: type[BaseModel] = Config, prefix: str = "") -> str:
    """One line for every key: name, default, bounds, meaning."""
    defaults = model()
    lines, section = [], None
    for key, field in all_keys(model, prefix):
        if (head := key.rpartition(".")[0]) != section:
            section = head
            lines.append("")
        value = (
            yaml.safe_dump(
                _plain(reduce(getattr, key.removeprefix(prefix).split("."), defaults)), default_flow_style=True
            )
            .strip()
            .removesuffix("...")
            .strip()
        )
        hints = "; ".join(filter(None, [_choices(field.annotation), _bounds(field)]))
        lines.append(f"  {key}={value}\n      {field.description}{f' [{hints}]' if hints else ''}")
    return "\n".join(lines).lstrip("\n")


def _merged(trees: Iterable[tuple[str, Tree]], overrides: Sequence[str]) -> tuple[Tree, dict[str, str]]:
    """The trees of files left to right, then overrides, as one tree; and where each dotted key was set."""
    tree: Tree = {}
    origin: dict[str, str] = {}
    for file, read in trees:
        _merge(tree, read, origin, source=file)
    for override in overrides:
        _override(tree, override, origin)
    return tree, origin


def _read(file: str) -> Tree:
    path = place(file)
    if not path.is_file():
        there = {found.stem: found for folder in ("conf", "sweeps") for found in Path(folder).rglob("*.yaml")}
        near = difflib.get_close_matches(path.stem, there, n=1, cutoff=0.7)
        hint = f"; did you mean {there[near[0]]}?" if near else ""
        raise UserError(f"{file}: no such config file{hint}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{file}: a config file holds 'section: {{key: value}}', found a {type(tree).__name__}")
    return tree


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(
                    f"{key.value!r} is written twice, the second time in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return node


def _override(tree: Tree, text: str, origin: dict[str, str]) -> None:
    """Merge `section.key=value` into the tree."""
    dotted, equals, written = text.partition("=")
    *sections, name = dotted.strip().split(".")
    if not equals or not name:
        raise UserError(f"{text!r}: neither a .yaml file nor an override of the form section.key=value")
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError:
        raise UserError(f"{text!r}: the value is not valid YAML; quote it, e.g. '{dotted}=\"...\"'") from None
    prefix, source = "", "command line"
    for section in sections:
        origin[f"{prefix}{section}"] = source
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree, prefix = tree[section], f"{prefix}{section}."
    _merge(tree, {name: value}, origin, source=source, prefix=prefix)


def _merge(into: Tree, tree: Mapping[Any, Any], origin: dict[str, str], *, source: str, prefix: str = "") -> None:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        origin[dotted] = source
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict) and dotted not in _whole():
            _merge(into.setdefault(key, {}), value, origin, source=source, prefix=f"{dotted}.")
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


@cache
def _whole() -> frozenset[str]:
    """Keys that hold a mapping as one value, such as a network's options: another file's replaces it as a whole."""
    return frozenset(key for key, field in all_keys() if get_origin(field.annotation) is dict)


_WORDS = {
    "tuple_type": "a list",
    "missing": "too few values",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} values",
    "dict_type": "names with their values, e.g. {{name: value}}",
    "string_type": "text, in quotes where YAML takes it for something else",
    "string_pattern_mismatch": "text like {pattern}",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
}
"""What is wanted where pydantic's type of error is this, in words that need no Python."""


def _written(parts: Sequence[str], origin: Mapping[str, str]) -> str:
    """The dotted key of an error: its longest part that somebody wrote, as a union adds the name of its branch."""
    keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((key for key in keys if key in origin), keys[0])


def _explain(key: str, error: Any, origin: Mapping[str, str], known: Sequence[str]) -> str:
    where = f" ({origin[key]})" if key in origin else ""
    if error["type"] == "extra_forbidden":
        # An unknown section is reported without its keys; what was written below it says best what was meant.
        below = [name for name in origin if name.startswith(f"{key}.")]
        full = max(below, key=lambda name: name.count("."), default=key)
        return f"{full}: no such key{where}{_suggest(full, known)}; --help lists them all"
    if error["type"] == "model_type":
        return f"{key}: a section, give {key}.<name>=value{where}"
    if error["type"] == "value_error":
        return f"{key}: {error['msg'].removeprefix('Value error, ')}{where}"
    wanted = _WORDS.get(error["type"], "").format(**error.get("ctx", {}))
    if error["type"] == "tuple_type" and isinstance(error["input"], str | int | float):
        wanted += f", e.g. [{error['input']}]"
    return f"{key}: {wanted or error['msg'].removeprefix('Input should be ')}, got {error['input']!r}{where}"


def _suggest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    leaf = key.rpartition(".")[2]
    near = near or [name for name in known if name.rpartition(".")[2] == leaf]
    return f"; did you mean {near[0]}?" if near else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _choices(annotation: Any) -> str:
    if getattr(annotation, "__origin__", None) is not None and "Literal" in str(annotation):
        return " | ".join(str(choice) for choice in get_args(annotation))
    return ""


def _bounds(field: FieldInfo) -> str:
    names = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in names.items()
        if hasattr(item, name)
    ]
    return ", ".join(found)
