"""Errors of composing and checking a config, in one line: the key, the value, what is allowed, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdrun.config import CONFIGS, SHORT_KEYS
from kdrun.words import quote

UNIONS = {
    "loss": "name",
    "rollout": "name",
    "pair": "kind",
    "data": "name",
    "teacher": "kind",
    "adapter": "kind",
    "launch": "kind",
    "bench": "name",
    "study": "name",
}  # config node -> the key that tells its sections apart
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" when a known word is near, else nothing."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def group_options(conf: Path, group: str) -> list[str]:
    """The names that `group=` takes, from the files in conf/: those in a folder of the group after its name and a /."""
    files = [*(conf / group).glob("*.yaml"), *(conf / group).glob("*/*.yaml")]
    return sorted(str(f.relative_to(conf / group).with_suffix("")) for f in files if not f.stem.startswith("_"))


def known_keys(command: str, conf: Path) -> dict[str, list[str]]:
    """Every key of a command's config -> the `group=option` choices that have it (empty: always there)."""
    model = CONFIGS[command]
    keys: dict[str, list[str]] = {key: [] for key in model.model_fields}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= {f"{name}.{key}": [] for key in field.annotation.model_fields}
    if command == "train":
        keys["experiment"] = []
    for group in (*UNIONS, "train", "eval", "track"):
        if group not in keys:
            continue
        for option in group_options(conf, group):
            for key in _keys_of_file(conf / group, option):
                keys.setdefault(f"{group}.{key}", []).append(f"{group}={option}")
    return keys


def _keys_of_file(folder: Path, option: str) -> set[str]:
    node = yaml.safe_load((folder / f"{option}.yaml").read_text()) or {}
    keys = set(node) - {"defaults"}
    for parent in node.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            keys |= _keys_of_file(folder, parent)
    return keys


def unknown_key(key: str, command: str, conf: Path, choices: dict[str, str]) -> str:
    """Why `key` is not in the composed config: another option has it, or nothing has."""
    known = known_keys(command, conf)
    short = key.removeprefix("loss.") if key.removeprefix("loss.") in SHORT_KEYS else key
    if owners := known.get(key):
        group = owners[0].split("=")[0]
        names = [owner.split("=")[1] for owner in owners]
        return (
            f"unknown key '{short}': {group}={choices.get(group, '?')} does not take it; only {group}={','.join(names)}"
        )
    words = set(known) | {word.removeprefix("loss.") for word in known if word.startswith("loss.")}
    near = suggest(key, words)
    return f"unknown key '{short}'{near or '; see kdrun show'}"


def explain_validation(
    error: ValidationError, defaults: dict[str, Any], model: type[BaseModel], *, typed: Iterable[str] = ()
) -> str:
    """The first fault of a config that composed but is not allowed; one of a typed key before those that follow from it
    (pair.context is data.max_tokens)."""
    faults = error.errors()
    inside = tuple(f"{key}." for key in typed)  # an item of a typed list is that list's fault, too
    fault = next((fault for fault in faults if f"{'.'.join(_location(fault))}.".startswith(inside)), faults[0])
    if fault["type"] == "value_error":  # a rule across keys, already a sentence of ours
        return str(fault["ctx"]["error"])
    location = _location(fault)
    given = fault.get("ctx", {}).get("input", fault["input"])
    key = ".".join(location)
    if fault["type"] == "union_tag_invalid":
        return f"{key}: {fault['msg']}"
    if fault["type"] == "missing":
        return f"{key}= is required (the config files in use do not set it)"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}' (value {fault['input']!r}): no part of kdrun reads it; remove it"
    default = _look_up(defaults, location)
    hint = f"; for example {key}={_spell(default)}" if default is not None and default != given else ""
    allowed = _allowed(model, location, defaults)
    if not allowed or fault["type"] == "too_large":
        return f"{key}={_spell(given)}: {fault['msg'][0].lower()}{fault['msg'][1:]}{hint}"
    return f"{key}={_spell(given)}: must be {allowed}{hint}"


def _location(fault: Any) -> list[str]:
    """The key of a fault in its parts, without the section of a union that pydantic names in it."""
    location = [str(part) for part in fault["loc"]]
    if len(location) > 1 and location[0] in UNIONS:
        location.pop(1)
    key = fault.get("ctx", {}).get("key")  # Section's own faults are those of a whole node, for pydantic
    return location if key is None else [*location, key]


def _look_up(tree: Any, location: Sequence[str]) -> Any:
    for part in location:
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _spell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spell, value)) + "]"
    return value if isinstance(value, str) else quote(value)


def _allowed(model: type[BaseModel], location: Sequence[str], config: dict[str, Any]) -> str:
    """What the schema allows at a key, in words; empty when it has no short words for it."""
    field = _field(model, list(location), config)
    if field is None:
        return ""
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not NoneType]
    null = " or null" if NoneType in _alternatives(field.annotation) else ""
    bounds = _bounds(field)
    if len(kinds) != 1:
        return ""
    kind = get_args(kinds[0])[0] if hasattr(kinds[0], "__metadata__") else kinds[0]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(_spell, get_args(kind))) + null
    if kind is bool:
        return "true or false" + null
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + bounds + null
    return ""


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return get_args(annotation)
    return (annotation,)


def _bounds(field: FieldInfo) -> str:
    marks = list(field.metadata)
    for kind in _alternatives(field.annotation):
        for extra in getattr(kind, "__metadata__", ()):
            marks += getattr(extra, "metadata", [extra])
    found = {}
    for name, word in BOUNDS.items():
        for value in (getattr(mark, name, None) for mark in marks):
            if value is not None:
                found[name] = f"{word} {_spell(value)}"
    return " " + " and ".join(found.values()) if found else ""


def _field(model: Any, location: list[str], config: dict[str, Any]) -> FieldInfo | None:
    """The schema's field at a key, following the union that the config's own tag chooses."""
    field = model.model_fields.get(location[0])
    if field is None or len(location) == 1 or location[1].isdigit():
        return field
    sections = [
        kind for kind in _alternatives(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    tag = _look_up(config, [location[0], UNIONS.get(location[0], "")])
    for section in sections:
        tag_field = section.model_fields.get(UNIONS.get(location[0], ""))
        if tag_field is None or tag in get_args(tag_field.annotation):
            return _field(section, location[1:], config.get(location[0], {}))
    return None
