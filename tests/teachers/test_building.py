"""Building: sizes before it starts, one shard after the other, and going on after a kill."""

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.teachers import building
from kdrun.teachers.building import check_disk, estimate_bytes, hidden_record, pass_batches
from kdrun.teachers.cached import open_cache
from kdrun.teachers.listing import find_caches, record_use, spell_bytes
from kdrun.teachers.live import LiveTeacher
from kdrun.teachers.store import plan_layout
from tests.teachers.conftest import gpt2, make_cache
from tests.training.conftest import encoded

Usage = namedtuple("Usage", "total used free")


class Killed(RuntimeError):
    """Stands for a kill: nothing after it runs but what a dying process would leave."""


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".safetensors")}


def test_the_layout_holds_every_row_once_from_short_to_long_in_shards_of_bounded_size(rows: EncodedSet) -> None:
    layout = plan_layout(rows, row_bytes=64, shard_bytes=2048)
    assert np.concatenate([layout.rows(shard) for shard in range(len(layout.row_ends))]).tolist() == (
        np.argsort(rows.lengths, kind="stable").tolist()
    )
    for shard in range(len(layout.row_ends)):
        assert layout.num_tokens(shard) == rows.scored_lengths[layout.rows(shard)].sum() <= 32
        first = layout.rows(shard)[0]
        assert layout.start_R[first] == layout.token_starts[shard]
    assert layout.token_starts[-1] == rows.num_scored_tokens


def test_a_pass_has_bounded_rows_and_padded_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "PASS_POSITIONS", 60)
    monkeypatch.setattr(building, "PASS_ROWS", 7)
    rows = encoded(100)
    order = np.argsort(rows.lengths, kind="stable")
    pieces = list(pass_batches(rows, order))
    assert np.concatenate(pieces).tolist() == order.tolist()
    assert all(len(piece) <= 7 and len(piece) * rows.lengths[piece].max() <= 60 for piece in pieces)
    assert max(map(len, pieces)) == 7


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_build_that_died_goes_on_after_its_last_whole_shard_and_ends_with_the_same_bytes(
    killed_after: int, rows: EncodedSet, tmp_path: Path
) -> None:
    teacher = LiveTeacher(gpt2(2, width=16), rows=None)
    make_cache(tmp_path / "whole" / "train", teacher, rows, shard_bytes=4096)
    passes: list[int] = []

    class Dying(LiveTeacher):
        def hidden(self, batch: Any) -> torch.Tensor:
            if len(passes) == killed_after:
                raise Killed
            passes.append(batch.num_scored)
            return super().hidden(batch)

    with pytest.raises(Killed):
        make_cache(tmp_path / "group" / "train", Dying(teacher.model, rows=None), rows, shard_bytes=4096)
    assert not (tmp_path / "group" / "train").exists(), "a half-built cache does not have the name of a whole one"
    (listed,) = find_caches(tmp_path / "group")
    assert listed.state.startswith(f"half-built ({killed_after} of ")
    made: list[int] = []

    class Counting(LiveTeacher):
        def hidden(self, batch: Any) -> torch.Tensor:
            made.append(batch.num_scored)
            return super().hidden(batch)

    identity = make_cache(tmp_path / "group" / "train", Counting(teacher.model, rows=None), rows, shard_bytes=4096)
    assert sum(passes) + sum(made) == rows.num_scored_tokens, "no token went through the teacher twice"
    assert bytes_of(tmp_path / "group" / "train") == bytes_of(tmp_path / "whole" / "train")
    assert open_cache(tmp_path / "group" / "train", identity, key="k").num_tokens == rows.num_scored_tokens
    assert not list((tmp_path / "group").glob("*.partial"))


def test_a_shard_of_a_half_built_cache_that_was_torn_is_made_again(rows: EncodedSet, tmp_path: Path) -> None:
    teacher = LiveTeacher(gpt2(2, width=16), rows=None)
    folder = tmp_path / "group" / "train"
    identity = make_cache(folder, teacher, rows, shard_bytes=4096)
    whole = bytes_of(folder)
    entry = '{"file": "%s", "bytes": %d, "sha256": "%s"}\n'
    files = open_cache(folder, identity, key="k").manifest["files"]
    partial = folder.with_name("train.partial")

    class Dying(LiveTeacher):
        def hidden(self, batch: Any) -> torch.Tensor:
            raise Killed

    shutil.move(folder, tmp_path / "old")
    with pytest.raises(Killed):
        make_cache(folder, Dying(teacher.model, rows=None), rows, shard_bytes=4096)
    for name in ("states-00000.bin", "states-00001.bin"):
        shutil.copy(tmp_path / "old" / name, partial / name)
        with (partial / "journal.jsonl").open("a") as journal:
            journal.write(entry % (name, files[name]["bytes"], files[name]["sha256"]))
    with (partial / "states-00001.bin").open("r+b") as file:
        file.seek(5)
        file.write(b"\x00\x01\x02")
    with (partial / "journal.jsonl").open("a") as journal:
        journal.write('{"file": "states-000')  # a torn line
    make_cache(folder, teacher, rows, shard_bytes=4096)
    assert bytes_of(folder) == whole


def test_leftovers_of_another_plan_are_thrown_away(rows: EncodedSet, tmp_path: Path) -> None:
    teacher = LiveTeacher(gpt2(2, width=16), rows=None)
    partial = tmp_path / "group" / "train.partial"
    partial.mkdir(parents=True)
    (partial / "building.json").write_text('{"identity": "another"}')
    (partial / "states-00000.bin").write_bytes(b"old")
    identity = make_cache(tmp_path / "group" / "train", teacher, rows)
    assert open_cache(tmp_path / "group" / "train", identity, key="k")


def test_the_estimate_is_what_the_shards_and_the_head_take(rows: EncodedSet, tmp_path: Path) -> None:
    teacher = LiveTeacher(gpt2(2, width=16), rows=None)
    identity = make_cache(tmp_path / "group" / "train", teacher, rows)
    estimate = estimate_bytes([rows], row_bytes=64, head_bytes=40 * 16 * 4)
    states = sum(path.stat().st_size for path in (tmp_path / "group" / "train").glob("*.bin"))
    head = (tmp_path / "group" / "head.safetensors").stat().st_size
    assert estimate == states + 40 * 16 * 4
    assert 0 < head - 40 * 16 * 4 < 300
    assert open_cache(tmp_path / "group" / "train", identity, key="k").num_bytes < estimate + 5000


def test_too_little_room_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - 4 * 10**9, 4 * 10**9))
    folder = tmp_path / "not" / "yet" / "there"
    assert check_disk(folder, 3 * 10**9, key="teacher.directory") == 4 * 10**9
    with pytest.raises(UserError, match=r"takes about 4\.5 GB and 4 GB are free") as refused:
        check_disk(folder, 45 * 10**8, key="teacher.directory")
    assert str(refused.value).startswith(f"teacher.directory={folder}: ")
    with pytest.raises(UserError):
        check_disk(folder, 4 * 10**9, key="teacher.directory")  # nothing would be left


def test_sizes_are_spelled_as_the_readme_does() -> None:
    assert [spell_bytes(x) for x in (917, 1600 * 2, 50257 * 2, 4.5e9)] == ["917 B", "3.2 kB", "101 kB", "4.5 GB"]


def test_a_body_that_is_not_the_heads_width_or_dtype_is_refused(rows: EncodedSet, tmp_path: Path) -> None:
    teacher = LiveTeacher(gpt2(2, width=16), rows=None)
    record = hidden_record(teacher.hidden, width=16, dtype=torch.bfloat16)
    from kdrun.data.batch import make_batch

    with pytest.raises(UserError, match="use teacher=live"):
        record.of(make_batch(rows, [1], pad_id=0, device="cpu"))


def test_uses_are_appended_and_counted_by_run(rows: EncodedSet, tmp_path: Path) -> None:
    folder = tmp_path / "group" / "train"
    make_cache(folder, LiveTeacher(gpt2(2, width=16), rows=None), rows)
    for reader in ("outputs/a", "outputs/b", "outputs/a"):
        record_use(folder, reader)
    with (folder / "uses.jsonl").open("a") as file:
        file.write('{"torn')
    (listed,) = find_caches(tmp_path)
    assert (listed.uses, listed.state, listed.tokens) == (2, "whole", rows.num_scored_tokens)
    assert listed.bytes_per_token == 64
    (folder / "states-00000.bin").write_bytes(b"short")
    assert find_caches(tmp_path)[0].state == "damaged: states-00000.bin"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_to_is_read_all_the_same(rows: EncodedSet, tmp_path: Path) -> None:
    folder = tmp_path / "group" / "train"
    identity = make_cache(folder, LiveTeacher(gpt2(2, width=16), rows=None), rows)
    folder.chmod(0o555)
    record_use(folder, "outputs/a")
    assert open_cache(folder, identity, key="k")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hidden_states_that_are_no_numbers_are_not_stored(value: float, rows: EncodedSet, tmp_path: Path) -> None:
    model = gpt2(0, width=16)
    with torch.no_grad():
        model.transformer.wte.weight[int(rows.row(7)[0][-2])] = value  # one token: other rows are sound
    with pytest.raises(UserError, match=r"pair.teacher: its logits are NaN or infinite .*\(in the batch of rows"):
        make_cache(tmp_path / "set", LiveTeacher(model, rows=None), rows)
    assert not (tmp_path / "set").exists()
