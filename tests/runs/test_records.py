"""Records of runs: what is read, and what is refused with file and line."""

from pathlib import Path

import pytest

from kdrun.errors import UserError
from kdrun.runs.records import check_run, json_objects, read_json, read_metrics


def test_a_torn_last_line_of_metrics_is_left_out_and_one_before_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 2.5, "fkl": null}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.5, "fkl": None}]
    path.write_text('{"step": 1, "lo\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"m\.jsonl:1: not JSON"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("5\n5\n", "m.jsonl:1: is not a JSON object"), ('{"a": 1}\n{}', "m.jsonl:1: has no step"),
     ('{"step": 1}\n{"step": 2, "loss": [1]}\n', r"m.jsonl:2: loss is \[1\], must be a number"),
     ("[" * 100_000 + "\n{}\n", "m.jsonl:1: not JSON")],
)  # fmt: skip
def test_a_line_that_is_none_of_metrics_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read_metrics(tmp_path / "m.jsonl")


def test_a_missing_file_has_no_lines_and_a_torn_one_is_refused_where_none_may_be(tmp_path: Path) -> None:
    assert json_objects(tmp_path / "none.jsonl") == []
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON"):
        json_objects(tmp_path / "a.jsonl")


def test_json_that_is_nested_too_deeply_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"run=a: .*run\.json cannot be read \(maximum recursion"):
        read_json(tmp_path / "run.json", key="run=a")


def test_a_field_of_another_kind_is_named_with_its_value() -> None:
    check_run({"command": "train", "status": "done", "overrides": ["a=1"], "more": 5}, at="x")
    for record, said in (
        ({"status": 5}, "status=5"), ({"status": "asleep"}, "status=asleep"), ({"overrides": ["a", 5]}, "overrides="),
        ({"attempts": [5]}, "attempts="), ({"command": None}, "command=null"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"x: it has {said}"):
            check_run(record, at="x")
