"""Run directories and teacher caches that must be refused. The folder tried in holds a finished run and its caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.torture.malformed.case import Case, case, cut, drop, put, setting, together
from tests.torture.malformed.models import PAIR

RUN = "outputs/train/student"
RECORD, CONFIG, SUMMARY = f"{RUN}/run.json", f"{RUN}/config.yaml", f"{RUN}/summary.json"
METRICS, EXAMPLES, PROTOCOL = (
    f"{RUN}/metrics.jsonl",
    f"{RUN}/eval/quick/examples.jsonl",
    f"{RUN}/eval/quick/protocol.json",
)
COMPARE, REPORT, RESUME = f"compare {RUN}", f"report {RUN}", f"train resume={RUN} train.max_steps=8"
EVALUATE = f"evaluate run={RUN} track.mode=disabled"
JUDGE = f"judge runs=[{RUN}] judge.model=m judge.base_url=http://127.0.0.1:9/v1 judge.cache=j"
SMALL = f"{PAIR} data.max_rows=64 evaluate=false track.mode=disabled"
DEEP = b"[" * 100_000
GARBAGE = {
    "empty": b"", "garbage": b"\x00\xff\xfe", "torn": b'{"command": "tra', "a list": b"[]", "a number": b"5",
    "deep": DEEP, "10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
}  # fmt: skip


def _each(words: Iterable[str], file: str, contents: dict[str, bytes]) -> list[Case]:
    return [
        case(f"{file.rpartition('/')[2]} {name}: {line.split()[0]}{line.partition('resume')[1]}", line,
             file.rpartition("/")[2], arrange=put(file, content))
        for line in words for name, content in contents.items()
    ]  # fmt: skip


def _record(name: str, arrange: Callable[[Path], Any], *expected: str) -> list[Case]:
    lines = {"compare": COMPARE, "resume": RESUME, "evaluate": EVALUATE}
    return [
        case(f"run.json {name}: {key}", line, "run.json", *expected, arrange=arrange) for key, line in lines.items()
    ]


def cached(name: str) -> Callable[[Path], str]:
    """Where a file of the training rows' cache lies."""
    return lambda folder: str(next(folder.glob(f"outputs/cache/*/train-*/{name}")).relative_to(folder))


def in_cache(name: str, action: Callable[[str], Callable[[Path], Any]]) -> Callable[[Path], Any]:
    """Do something to a file of the training rows' cache."""
    return lambda folder: action(cached(name)(folder))(folder)


def _cache(name: str, arrange: Callable[[Path], Any], *expected: str) -> Case:
    def moved(folder: Path) -> None:
        arrange(folder)
        next(folder.glob("outputs/cache/*/train-*")).parent.rename(folder / "cache")

    return case(f"cache: {name}", f"train teacher=cached teacher.path=cache {SMALL}", "cache/train-", *expected,
                arrange=moved)  # fmt: skip


def _manifest(name: str, **values: Any) -> Case:
    return _cache(
        f"a manifest with {name}", in_cache("manifest.json", lambda path: setting(path, **values)), "manifest"
    )


RECORDS = [
    *_each([COMPARE, REPORT, RESUME, EVALUATE], RECORD, GARBAGE),
    *_record("with a status of 5", setting(RECORD, status=5), "status"),
    *_record("with an unknown status", setting(RECORD, status="asleep"), "status"),
    *_record("with a text for words", setting(RECORD, overrides="loss=akl"), "overrides"),
    *_record("with a number among the words", setting(RECORD, overrides=["loss=akl", 5]), "overrides"),
    case("run.json without words", RESUME, RUN, "overrides", arrange=setting(RECORD, overrides=...)),
    *_record("with a command of 5", setting(RECORD, command=5), "command"),
    *_record("with a text for attempts", setting(RECORD, attempts="none"), "attempts"),
    *_record("with a list of attempts", setting(RECORD, attempts=[5]), "attempts"),
    case("run.json with words that are none", RESUME, "loss=[", arrange=setting(RECORD, overrides=["loss=["])),
    case("run.json with words of no key", RESUME, "none_such", arrange=setting(RECORD, overrides=["none_such=1"])),
    case("no run.json", RESUME, "run.json", arrange=drop(RECORD)),
    case("run.json that is a folder", COMPARE, "run.json",
         arrange=together(drop(RECORD), lambda folder: (folder / RECORD).mkdir())),
    # config.yaml
    *_each([COMPARE, REPORT, RESUME, EVALUATE], CONFIG, {
        "empty": b"", "a list": b"- a\n- b\n", "a number": b"5\n", "not YAML": b"a: [1, 2\nb: {",
        "a tab": b"a:\n\tb: 1\n",
        "a tag of Python": b"a: !!python/object/apply:os.system [touch touched]\n", "an unknown tag": b"a: !x 1\n",
        "a tag of a name": b"a: !!python/name:os.system\n", "not UTF-8": b"a: \xff\n", "NUL": b"a: \0\n",
        "an unknown alias": b"a: *b\n", "deep": b"a: " + DEEP, "two documents": b"a: 1\n---\nb: 2\n",
        "a list for a key": b"? [a, b]\n: 1\n",
    }),
    case("no config.yaml", EVALUATE, "config.yaml", arrange=drop(CONFIG)),
    case("config.yaml without a pair", EVALUATE, "config.yaml", "pair", arrange=put(CONFIG, "role: student\n")),
    case("config.yaml with a text for the pair", EVALUATE, "config.yaml", "pair", arrange=put(CONFIG, "pair: tiny\n")),
    case("config.yaml with a pair of no kind", EVALUATE, "config.yaml", "pair",
         arrange=put(CONFIG, "pair: {kind: none_such}\n")),
    case("config.yaml of another run", RESUME, RUN, arrange=put(CONFIG, "seed: 5\n")),
    # summary.json, metrics.jsonl, examples.jsonl, protocol.json
    *_each([COMPARE, REPORT], SUMMARY, {name: GARBAGE[name] for name in ("empty", "torn", "a list", "deep")}),
    *_each([REPORT], METRICS, {
        "of numbers": b"5\n6\n", "of lists": b"[]\n[]\n", "not UTF-8": b"\xff\n",
        "torn before its end": b'{"st\n{"step": 1}\n',
        "without steps": b'{"train/loss": 1}\n{"train/loss": 1}\n', "with a text": b'{"step": "a"}\n{"step": 1}\n',
        "with a list for a loss": b'{"step": 1, "valid/nll": []}\n{"step": 2}\n', "deep": DEEP + b"\n5\n",
        "with a text for a loss": b'{"step": 1, "train/step_s": "a", "train/tokens_per_s": 1}\n{"step": 2}\n',
    }),
    *_each([REPORT, JUDGE], EXAMPLES, {
        "of numbers": b"5\n6\n", "of lists": b"[]\n", "torn": b'{"instr', "not UTF-8": b"\xff\n", "deep": DEEP,
    }),
    *_each([JUDGE], EXAMPLES, {"empty": b"", "without instructions": b"{}\n"}),
    *_each([REPORT], PROTOCOL, {name: GARBAGE[name] for name in ("empty", "torn", "a list", "deep")}),
    case("an evaluation without texts", f"{JUDGE} decoding=seed99", "decoding=seed99"),
    case("an evaluation that is not there", f"{JUDGE} eval=none_such", "eval=none_such"),
    case("no evaluation", JUDGE, "runs=", arrange=drop(f"{RUN}/eval")),
    # what else a run directory may lack
    case("no student", EVALUATE, "run=", arrange=drop(f"{RUN}/student")),
    case("half a student", EVALUATE, "run=", "safetensors", arrange=cut(f"{RUN}/student/model.safetensors", -99)),
    case("a student without a tokenizer", EVALUATE, "run=", "tokenizer", arrange=drop(f"{RUN}/student/tokenizer.json")),
    case("no teacher", EVALUATE, "pair.teacher=", arrange=drop("outputs/teachers/tiny-unicode")),
    case("a run that is done", f"train resume={RUN}", "done"),
    case("runs of a study without head and tail", f"study headtail study.runs={RUN}", "study.runs="),
    case("a run for a study that is torn", f"study headtail study.runs={RUN}", "run.json", arrange=put(RECORD, b"{")),
    case("a run for a study without a loss", f"study headtail study.runs={RUN}", "config.yaml", "loss",
         arrange=put(CONFIG, "role: student\n")),
    case("a folder that is no sweep", f"sweep resume={RUN}", "sweep.json"),
    case("a sweep of garbage", f"sweep resume={RUN}", "sweep.json", arrange=put(f"{RUN}/sweep.json", b"{")),
    case("a sweep that is a list", f"sweep resume={RUN}", "sweep.json", arrange=put(f"{RUN}/sweep.json", b"[]")),
    case("a sweep of nothing", f"sweep resume={RUN}", "sweep.json", arrange=put(f"{RUN}/sweep.json", b"{}")),
    case("a sweep of numbers", f"sweep resume={RUN}", "sweep.json",
         arrange=put(f"{RUN}/sweep.json", b'{"command": 5, "words": 5, "flags": 5, "cells": 5, "total": "a"}')),
    # teacher caches
    _cache("no manifest of the rows", in_cache("manifest.json", lambda path: put(path, b"")), "manifest.json"),
    _cache("a torn manifest", in_cache("manifest.json", lambda path: cut(path, 200)), "manifest.json"),
    _cache("a deep manifest", in_cache("manifest.json", lambda path: put(path, DEEP)), "manifest.json"),
    _cache("a manifest that is a list", in_cache("manifest.json", lambda path: put(path, b"[]")), "manifest.json"),
    *(_manifest(f"no {key}", **{key: ...}) for key in (
        "identity", "files", "head", "row_bytes", "width", "sha256", "rows", "tokens")),
    *(_manifest(f"{key} {value!r}", **{key: value}) for key, value in [
        ("identity", 5), ("files", []), ("files", {}), ("files", {"states-00000.bin": 5}), ("files", {"../x": {}}),
        ("head", "x"), ("head", {"file": "../../x", "bytes": 5, "sha256": "a"}), ("row_bytes", "64"),
        ("row_bytes", -64), ("row_bytes", 0), ("width", None), ("sha256", 5), ("rows", "many"),
        ("rows", -1), ("tokens", 1.5),
    ]),
    _manifest("files of no size", files={"states-00000.bin": {"sha256": "a"}}),
    _manifest("files of a negative size", files={"states-00000.bin": {"bytes": -1, "sha256": "a"}}),
    _cache("no shard", in_cache("states-00000.bin", drop), "states-00000.bin", "missing"),
    _cache("a short shard", in_cache("states-00000.bin", lambda path: cut(path, -1)), "states-00000.bin", "bytes"),
    _cache("a long shard", in_cache("states-00000.bin", lambda path: put(path, b"0" * 10**6)), "states-00000.bin"),
    _cache("no table of rows", in_cache("rows.safetensors", drop), "rows.safetensors"),
    _cache("half a table of rows", in_cache("rows.safetensors", lambda path: cut(path, 100)), "rows.safetensors"),
    case("cache: no head", f"train teacher=cached teacher.path=cache {SMALL}", "head.safetensors",
         arrange=lambda folder: (next(folder.glob("outputs/cache/*/head.safetensors")).unlink(),
                                 next(folder.glob("outputs/cache/*/train-*")).parent.rename(folder / "cache"))),
    case("cache: an empty folder", "train teacher=cached teacher.path=cache", "teacher.path=cache",
         arrange=lambda folder: (folder / "cache").mkdir()),
    case("cache: a file", f"train teacher=cached teacher.path={RECORD}", "teacher.path="),
]  # fmt: skip
