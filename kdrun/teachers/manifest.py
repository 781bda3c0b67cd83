"""manifest.json: what a cache was made of, field by field, and the checksum of every file beside it.

A cache is one folder a set of rows, in a folder for all sets of one teacher and one way of making rows:

    outputs/cache/TEACHER-DATA-HASH/            the same for every field of `TeacherIdentity`
        head.safetensors
        train-HASH/ valid-HASH/ test-HASH/      the same rows
            manifest.json rows.safetensors states-00000.bin ... uses.jsonl
        train-HASH.partial/                     half-built, to be continued
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.runs.directory import write_json
from kdrun.teachers.hashing import array_sha256, text_sha256
from kdrun.untrusted import is_plain_name, printable

FORMAT = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"
# Named first in a refusal: what a person can do something about, before the hashes that follow from it.
TELLING = ("format", "topk", "vocabulary", "dtype", "template", "max_prompt_tokens", "max_tokens", "overlong")


@dataclass(frozen=True)
class TeacherIdentity:
    """What decides the states beside the rows. `weights_sha256` is None where the weights are not at hand."""

    config_sha256: str
    weights_sha256: str | None
    tokenizer_sha256: str
    dtype: str
    topk: int | None
    vocabulary: int | None  # rows that a lossy cache is normalised over; an exact one keeps the whole head
    template: str
    max_prompt_tokens: int
    max_tokens: int
    overlong: str
    torch: str
    transformers: str
    format: int = FORMAT

    @property
    def sha256(self) -> str:
        """One hash of all fields."""
        return text_sha256(canonical(asdict(self)))

    def folder_name(self, teacher: str, data: str) -> str:
        """TEACHER-DATA-HASH: readable, and another for every other identity."""
        top = "" if self.topk is None else f"top{self.topk}-"
        return f"{short_name(teacher)}-{data}-{top}{self.sha256[:12]}"


def short_name(teacher: str) -> str:
    """A teacher's reference as part of a file name: the last part of a hub name or path that is not a role."""
    parts = [part for part in Path(teacher).parts if part not in ("student", "teacher", "/", "..")]
    return re.sub(r"[^A-Za-z0-9._]+", "-", parts[-1] if parts else teacher).strip("-.") or "teacher"


def identity_fields(teacher: TeacherIdentity, rows: EncodedSet) -> dict[str, Any]:
    """Every field that must be equal between a cache and a run that reads it."""
    return {**asdict(teacher), "data_sha256": rows.fingerprint(), "rows_sha256": array_sha256(rows.example_index)}


def set_name(split: str, identity: dict[str, Any]) -> str:
    """SPLIT-HASH of the rows."""
    return f"{split}-{identity['data_sha256'][:12]}"


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The same with its own hash in it."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    return {**body, "sha256": text_sha256(canonical(body))}


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write manifest.json, sealed."""
    write_json(folder / MANIFEST, seal(content))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a cache's manifest.json, whatever it says.

    Raises:
        UserError: naming the file, when it cannot be read as a manifest.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise damaged(path, "is missing", folder) from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read ({' '.join(str(error).split())})", folder) from error
    if wrong := _wrong_field(content):
        raise damaged(path, f"is not a manifest of a teacher cache ({wrong})", folder)
    if outside := [name for name in (*content["files"], *_head_files(content)) if not is_plain_name(name)]:
        raise damaged(path, f"names the file {printable(str(outside[0]))}, outside of the cache", folder)
    return content


def _wrong_field(content: Any) -> str | None:
    """What is missing in a manifest, or of another kind than `building.build` writes; None when nothing is."""
    if not isinstance(content, dict):
        return "no JSON object"
    wanted = {
        "identity": dict,
        "files": dict,
        "head": dict,
        "row_bytes": int,
        "rows": int,
        "tokens": int,
        "sha256": str,
    }
    wanted |= {"width": int} if content.get("head") else {}
    for name, kind in wanted.items():
        if type(content.get(name)) is not kind or (kind is int and content[name] < 1):
            return f"{name}={str(content[name])[:40]}" if name in content else f"no {name}"
    for name, entry in [*content["files"].items(), *([("head", content["head"])] if content["head"] else [])]:
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if type(size) is not int or size < 0 or not isinstance(entry.get("sha256"), str):
            return f"no size or no sha256 of {name}"
    return None if content["files"] else "no files"


def _head_files(content: dict[str, Any]) -> list[Any]:
    return [content["head"].get("file")] if content["head"] else []


def check_manifest(folder: Path, content: dict[str, Any], identity: dict[str, Any], *, key: str) -> None:
    """The manifest is that of the wanted identity, and as it was written.

    Raises:
        UserError: naming the field that differs (after `key`), or the file when it was altered.
    """
    if differing := differences(content["identity"], identity):
        raise UserError(refusal(folder, content, identity, differing, key=key))
    if seal(content) != content:
        raise damaged(folder / MANIFEST, "does not have the sha256 that it names, so it was altered", folder)


def differences(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Fields in which two identities differ, the most telling first; a weight hash that is not at hand is left out."""
    keys = [*wanted, *(key for key in there if key not in wanted)]
    found = [k for k in keys if there.get(k) != wanted.get(k) and not (k == "weights_sha256" and wanted[k] is None)]
    return sorted(found, key=lambda k: TELLING.index(k) if k in TELLING else len(TELLING))


def refusal(
    folder: Path, content: dict[str, Any], identity: dict[str, Any], differing: Sequence[str], *, key: str
) -> str:
    """Why a cache is not that of this run: the first field with both values, the others by name."""
    field = differing[0]
    there, here = (_spell(values.get(field)) for values in (content["identity"], identity))
    others = f" (differing too: {', '.join(differing[1:])})" if len(differing) > 1 else ""
    return (
        f"{key}: the cache {folder} has {field}={there}, this run {field}={here}{others}; it was made of "
        f"teacher {content.get('teacher')}, data={content.get('data')}. Leave teacher.path out to have one of this "
        f"run's own, or build it ahead with `kdrun cache` and this run's words"
    )


def damaged(path: Path, why: str, folder: Path) -> UserError:
    """The error for a cache that cannot be trusted: which file, why, what to type."""
    return UserError(
        f"{path}: {why}; the cache is not used. Delete it (rm -r {folder}), then run again, "
        "or build it ahead with `kdrun cache` and the same words"
    )


def known_fields() -> tuple[str, ...]:
    """Names of all fields of an identity."""
    return (*(field.name for field in fields(TeacherIdentity)), "data_sha256", "rows_sha256")


def _spell(value: Any) -> str:
    text = "null" if value is None else str(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text


def canonical(content: Any) -> str:
    """JSON that is the same for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
