"""A cache that is not the run's own, or not what it was, is never read: the field or the file is named."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.teachers.cached import open_cache, save_head
from kdrun.teachers.live import LiveTeacher
from kdrun.teachers.manifest import TeacherIdentity, known_fields, read_manifest, short_name, write_manifest
from tests.teachers.conftest import gpt2, identity_of, make_cache


@pytest.fixture
def made(rows: EncodedSet, tmp_path: Path) -> tuple[Path, dict]:
    """A cache of several shards, in group/train."""
    folder = tmp_path / "group" / "train"
    return folder, make_cache(folder, LiveTeacher(gpt2(2, width=16), rows=None), rows, shard_bytes=4096)


OTHER = {"topk": 5, "vocabulary": 40, "dtype": "bf16", "template": "chat", "max_prompt_tokens": 9, "max_tokens": 33,
         "overlong": "truncate", "torch": "2.12.0", "transformers": "5.0.0", "format": 2}  # fmt: skip


@pytest.mark.parametrize("field", known_fields())
def test_every_field_that_differs_is_named_with_both_values(field: str, made: tuple[Path, dict]) -> None:
    folder, identity = made
    other = OTHER.get(field, "d" * 64)
    with pytest.raises(UserError) as refused:
        open_cache(folder, {**identity, field: other}, key="teacher.path=group")
    message = str(refused.value)
    assert message.startswith("teacher.path=group: ")
    shown = [value[:12] if len(value) == 64 else value for value in ("null" if v is None else str(v)
             for v in (identity[field], other))]  # fmt: skip
    assert f"has {field}={shown[0]}" in message
    assert f"this run {field}={shown[1]}" in message
    assert "kdrun cache" in message and "\n" not in message


def test_all_differing_fields_are_named_what_a_person_can_change_first(made: tuple[Path, dict]) -> None:
    folder, identity = made
    with pytest.raises(UserError, match=r"has max_tokens=32, .*\(differing too: weights_sha256, data_sha256\)"):
        open_cache(folder, {**identity, "weights_sha256": "0" * 64, "data_sha256": "1" * 64, "max_tokens": 64}, key="k")


def test_a_teacher_whose_weights_are_not_at_hand_is_compared_in_all_other_fields(made: tuple[Path, dict]) -> None:
    folder, identity = made
    assert open_cache(folder, {**identity, "weights_sha256": None}, key="k")
    with pytest.raises(UserError, match="dtype"):
        open_cache(folder, {**identity, "weights_sha256": None, "dtype": "bf16"}, key="k")


def files_of(folder: Path) -> list[str]:
    return sorted([path.name for path in folder.iterdir()] + ["../head.safetensors"])


def test_a_flipped_byte_in_any_file_is_found_and_the_file_named(made: tuple[Path, dict]) -> None:
    """Three places of every file of the cache, the manifest and the shared head included."""
    folder, identity = made
    names = files_of(folder)
    assert len([name for name in names if name.endswith(".bin")]) > 2
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 2):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(UserError) as refused:
                open_cache(folder, identity, key="teacher=cached")
            assert path.name in str(refused.value) or "this run" in str(refused.value), (name, place)
            assert "kdrun cache" in str(refused.value)
        path.write_bytes(whole)
    assert open_cache(folder, identity, key="teacher=cached")


@pytest.mark.parametrize("name", ["states-00001.bin", "rows.safetensors", "manifest.json", "../head.safetensors"])
def test_a_torn_or_missing_file_is_found(name: str, made: tuple[Path, dict]) -> None:
    folder, identity = made
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=path.name) as refused:
        open_cache(folder, identity, key="teacher=cached")
    assert "rm -r" in str(refused.value)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: is missing"):
        open_cache(folder, identity, key="teacher=cached")


def test_shards_that_changed_places_are_found(made: tuple[Path, dict]) -> None:
    folder, identity = made
    shutil.copy(folder / "states-00000.bin", folder / "states-00001.bin")
    with pytest.raises(UserError, match="states-00001"):
        open_cache(folder, identity, key="teacher=cached")


def test_a_manifest_altered_in_a_field_that_is_no_identity_is_found(made: tuple[Path, dict]) -> None:
    folder, identity = made
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "width": 8}))
    with pytest.raises(UserError, match=r"manifest.json: does not have the sha256"):
        open_cache(folder, identity, key="teacher=cached")
    write_manifest(folder, content)
    assert open_cache(folder, identity, key="teacher=cached")


def test_another_teachers_head_is_not_written_over(made: tuple[Path, dict]) -> None:
    folder, _ = made
    with pytest.raises(UserError, match=r"head.safetensors: is not the head of this teacher"):
        save_head(LiveTeacher(gpt2(3, width=16), rows=None).head, folder.parent)


def test_the_name_of_a_folder_is_readable_and_another_for_every_other_setting(rows: EncodedSet) -> None:
    identity = identity_of(LiveTeacher(gpt2(2, width=16), rows=None), rows)
    fields = {key: value for key, value in identity.items() if key not in ("data_sha256", "rows_sha256")}
    plain = TeacherIdentity(**fields).folder_name("MiniLLM/teacher-gpt2-1.5B", "dolly")
    assert plain.startswith("teacher-gpt2-1.5B-dolly-")
    names = {TeacherIdentity(**{**fields, key: value}).folder_name("a/b", "dolly") for key, value in OTHER.items()}
    assert len(names) == len(OTHER)
    assert short_name("outputs/runs/my run/teacher") == "my-run"


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "..", "a/b"])
@pytest.mark.parametrize("part", ["files", "head"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(part: str, name: str, made: tuple[Path, dict]) -> None:
    folder, identity = made
    content = read_manifest(folder)
    if part == "files":
        content["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    else:
        content["head"]["file"] = name
    write_manifest(folder, content)
    with pytest.raises(UserError, match=r"manifest.json: names the file .* outside of the cache"):
        open_cache(folder, identity, key="teacher=cached")


def test_a_cache_with_a_link_out_of_it_is_refused(made: tuple[Path, dict], tmp_path_factory: Any) -> None:
    folder, identity = made
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "profile"
    (folder / "uses.jsonl").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"uses\.jsonl is a link out of that folder"):
        open_cache(folder, identity, key="teacher=cached")
    assert not elsewhere.exists()


def test_a_table_of_rows_that_does_not_fit_the_shards_is_refused_whatever_its_checksum_says(
    made: tuple[Path, dict],
) -> None:
    from safetensors.numpy import load_file, save_file

    folder, identity = made
    table = load_file(folder / "rows.safetensors")
    table["start"][0] += 10**6
    save_file(table, folder / "rows.safetensors")
    content = read_manifest(folder)
    content["files"]["rows.safetensors"] = {
        "bytes": (folder / "rows.safetensors").stat().st_size,
        "sha256": hashlib.sha256((folder / "rows.safetensors").read_bytes()).hexdigest(),
    }
    write_manifest(folder, content)
    with pytest.raises(UserError, match=r"rows.safetensors: does not fit the shards"):
        open_cache(folder, identity, key="teacher=cached")
