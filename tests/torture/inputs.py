"""Bad input: every malformed case refused in one line, nothing written; no crash for mutated words and lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.conftest import SMALL, run_kdrun
from tests.torture.fuzz import fuzzed_lines, fuzzed_words, read, shown
from tests.torture.malformed.case import Outcome, attempt, faults, listing, setting, wait
from tests.torture.malformed.lines import TRAIN, sparse
from tests.torture.malformed.models import CONFIG, MODEL, TABLE, TRY, tensors
from tests.torture.malformed.tables import NEED_A_RUN, TABLES
from tests.torture.rows import Row

FRESH = 20  # cases that are tried in a process of their own, which imports everything anew
BATCH = 40  # fuzzed command lines, or thousands of lines, between two looks at the clock
TWO_LAYERS = ["pair.teacher_layers=2", "eval.seeds=[10]", "train.max_steps=4"]


def run(folder: Path, budget_s: float) -> list[Row]:
    """The rows of bad input: cases, fresh processes, what only the weights tell, the long line, both fuzzers."""
    started = time.monotonic()
    (folder / "empty").mkdir()
    finished(folder / "run")
    _clock("a finished run", started)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_import) as pool:
        rows = _cases(pool, folder, until=started + 0.6 * budget_s)
        _clock("cases", started)
        rows += [_fresh(folder), _huge(folder), _late(folder)]
        _clock("fresh processes", started)
        rows += _fuzz(pool, folder / "empty", until=started + budget_s)
    return rows


def finished(folder: Path) -> None:
    """A teacher of two layers, and a distillation from a cache of it with an evaluation and checkpoints."""
    folder.mkdir()
    common = [*SMALL, *TWO_LAYERS, "data.encoded=null"]
    run_kdrun("train", "role=teacher", "loss=sft", "train=tiny_teacher", "name=teacher", *common, "evaluate=false",
              "train.save_every=null", "hydra.run.dir=outputs/teachers/tiny-unicode", cwd=folder)  # fmt: skip
    run_kdrun("train", "loss=akl", "teacher=cached", "name=student", *common, "train.save_every=2",
              "hydra.run.dir=outputs/train/student", cwd=folder)  # fmt: skip


def _import() -> None:
    """Once in each worker, whose forks then try the cases."""
    import kdrun.commands.compare
    import kdrun.commands.judge
    import kdrun.commands.preconditions
    import kdrun.commands.report
    import kdrun.launch  # noqa: F401


# -- cases -------------------------------------------------------------------------------------------------------------


def tried(table: str, number: int, folder: Path) -> tuple[str, Outcome, list[str]]:
    """Name, outcome and faults of one case, tried in a copy of its folder."""
    case = TABLES[table][number]
    place = folder / f"{table}-{number}"
    shutil.copytree(folder / ("run" if table in NEED_A_RUN else "empty"), place, symlinks=True)
    try:
        outcome = attempt(case.words, place, arrange=case.arrange)
    finally:
        shutil.rmtree(place)
    return case.name, outcome, faults(outcome, case.expected)


def _cases(pool: ProcessPoolExecutor, folder: Path, *, until: float) -> list[Row]:
    """A row a table, as many cases as there is time for; those of all tables by turns."""
    turns = sorted(
        (number / len(cases), table, number) for table, cases in TABLES.items() for number in range(len(cases))
    )
    futures: list[tuple[str, Future[Any]]] = [(table, pool.submit(tried, table, n, folder)) for _, table, n in turns]
    found: dict[str, list[tuple[str, Outcome, list[str]]]] = {table: [] for table in TABLES}
    for table, future in futures:
        if time.monotonic() > until:
            for _, waiting in futures:
                waiting.cancel()
        if not future.cancelled():
            found[table].append(future.result())
    rows = []
    for table, results in found.items():
        kept = sum(not wrong for _, _, wrong in results)
        _tell(f"{name}: {', '.join(wrong)}: {outcome.err[-300:]}" for name, outcome, wrong in results if wrong)
        slowest = max((outcome.seconds for _, outcome, _ in results), default=0.0)
        figure = f"slowest {1000 * slowest:.0f} ms after the imports; {len(TABLES[table])} in the table"
        rows.append(Row(f"malformed {table} refused: one line with the place, exit 2, nothing written",
                        len(results), kept, figure))  # fmt: skip
    return rows


def _fresh(folder: Path) -> Row:
    """A sample of the cases in processes of their own: what a person waits for."""
    every = [(table, number) for table, cases in TABLES.items() for number in range(len(cases))]
    kept, slowest_s, clock_s = 0, 0.0, 0.0
    for table, number in every[:: len(every) // FRESH][:FRESH]:
        case, place = TABLES[table][number], folder / f"fresh-{table}-{number}"
        shutil.copytree(folder / ("run" if table in NEED_A_RUN else "empty"), place, symlinks=True)
        case.arrange(place)
        begun = time.monotonic()
        outcome = alone(case.words, place)
        clock_s = max(clock_s, time.monotonic() - begun)
        wrong = faults(outcome, case.expected)
        _tell([f"fresh {case.name}: {', '.join(wrong)}"] if wrong else [])
        kept, slowest_s = kept + (not wrong), max(slowest_s, outcome.seconds)
    figure = f"slowest {slowest_s:.2f} s of the processor with all imports, {clock_s:.2f} s by the clock"
    return Row("the same in a fresh process, under 2 s", FRESH, kept, figure)


def alone(words: tuple[str, ...], folder: Path) -> Outcome:
    """The outcome of `kdrun words` in a process of its own."""
    before, out, err = listing(folder), folder.with_suffix(".out"), folder.with_suffix(".err")
    command = [os.fsencode(word) for word in (sys.executable, "-m", "kdrun", *words)]
    with out.open("wb") as one, err.open("wb") as two:
        code, seconds, peak_mib = wait(subprocess.Popen(command, cwd=folder, stdout=one, stderr=two).pid)
    after = listing(folder)
    touched = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    texts = [path.read_text(errors="backslashreplace") for path in (out, err)]
    return Outcome(code, texts[0], texts[1], seconds, peak_mib, tuple(touched))


LATE: dict[str, Callable[[Path], Any]] = {
    "NaN in the weights": tensors(lambda found: found[TABLE].__setitem__((0, 0), float("nan"))),
    "infinity in the weights": tensors(lambda found: found[TABLE].__setitem__((5, 3), float("inf"))),
    "an unknown architecture": setting(CONFIG, model_type="none_such"),
    "a missing final norm": tensors(lambda found: found.pop("transformer.ln_f.weight")),
    "a final norm of another shape": tensors(
        lambda found: found.update({"transformer.ln_f.weight": found["transformer.ln_f.weight"][:-1].copy()})
    ),
}


def _late(folder: Path) -> Row:
    """What only loading tells: refused in one line, too, and run.json says that it failed, and why."""
    kept = 0
    for number, (name, arrange) in enumerate(LATE.items()):
        place = folder / f"late-{number}"
        shutil.copytree(folder / "run", place)
        arrange(place)
        outcome = alone((*TRY.split(), "hydra.run.dir=ended"), place)
        record = json.loads((place / "ended/run.json").read_text())
        lines = [line for line in outcome.err.splitlines() if line.startswith("kdrun: ")]
        good = outcome.code == 2 and "Traceback" not in outcome.err and len(lines) == 1 and MODEL in lines[0]
        good = good and record["status"] == "failed" and "UserError" in record["error"]
        _tell([] if good else [f"{name}: {outcome.code} {outcome.err[-400:]} {record['status']} {record['error']}"])
        kept += good
    return Row("found when the weights are read: one line, exit 2, run.json says failed and why", len(LATE), kept)


def _huge(folder: Path) -> Row:
    """A line of 3 GiB, and what reading it took beside a line that is only wrong."""
    peaks, kept = [], 1
    for name, arrange in (("huge", sparse), ("small", lambda path: path.write_bytes(b"{\n"))):
        place = folder / name
        place.mkdir()
        arrange(place / "my.jsonl")
        outcome = alone(tuple(TRAIN.split()), place)
        wrong = faults(outcome, ("my.jsonl:1:",))
        _tell([f"{name}: {', '.join(wrong)}"] if wrong else [])
        kept, peaks = kept * (not wrong), [*peaks, outcome.peak_mib]
    (folder / "huge/my.jsonl").unlink()
    figure = f"peak {peaks[0]:.0f} MiB, of a bad line of 2 bytes {peaks[1]:.0f} MiB"
    return Row("one line of 3 GiB refused, not read", 1, int(kept and peaks[0] < peaks[1] + 64), figure)


# -- fuzzers -----------------------------------------------------------------------------------------------------------


def fuzz_words(seeds: range, folder: Path) -> list[tuple[str, bool, float]]:
    """What is wrong ("" for nothing), whether the words were refused, and the seconds, a command line a seed."""
    os.chdir(folder)
    found = []
    for seed in seeds:
        words, begun = fuzzed_words(seed), time.process_time()
        try:
            code, err = shown(words)
        except BaseException as error:  # a crash is what is looked for
            found.append((f"{words}: {type(error).__name__}: {error}"[:400], False, 0.0))
            continue
        seconds, lines = time.process_time() - begun, err.splitlines()
        good = code == 0 or (code == 2 and len(lines) == 1 and len(err) < 1500)
        found.append(("" if good and seconds < 5 else f"{words}: {code} {err}"[:400], code == 2, seconds))
    return found


def fuzz_lines(seeds: range, folder: Path) -> list[tuple[str, bool, float]]:
    """The same for data files: refused with file and line, or read and able to be written as UTF-8."""
    path, found = folder / f"fuzz-{seeds.start}.jsonl", []
    for seed in seeds:
        begun = time.process_time()
        try:
            said = read(path, fuzzed_lines(seed))
        except BaseException as error:
            found.append((f"seed {seed}: {type(error).__name__}: {error}"[:400], False, 0.0))
            continue
        good = not said or (said.startswith((f"{path}:", "data.path=")) and "\n" not in said and len(said) < 1500)
        found.append(("" if good else f"seed {seed}: {said}"[:400], bool(said), time.process_time() - begun))
    path.unlink(missing_ok=True)
    return found


def _fuzz(pool: ProcessPoolExecutor, folder: Path, *, until: float) -> list[Row]:
    """Both fuzzers, batch after batch for as long as there is time, one batch of each at least."""
    words: list[tuple[str, bool, float]] = []
    lines: list[tuple[str, bool, float]] = []
    number = 0
    while number == 0 or time.monotonic() < until - 15:  # a batch of each takes some 10 s on an idle core
        one = pool.submit(fuzz_words, range(2 * number * BATCH, (2 * number + 1) * BATCH), folder)
        two = pool.submit(fuzz_words, range((2 * number + 1) * BATCH, (2 * number + 2) * BATCH), folder)
        three = pool.submit(fuzz_lines, range(number * 25 * BATCH, (number + 1) * 25 * BATCH), folder)
        words += one.result() + two.result()
        lines += three.result()
        number += 1
    rows = []
    for name, found in (("command lines", words), ("data files", lines)):
        _tell(wrong for wrong, _, _ in found if wrong)
        refused = sum(refused for _, refused, _ in found)
        figure = f"{refused} refused, {len(found) - refused} taken; slowest {1000 * max(s for _, _, s in found):.0f} ms"
        rows.append(Row(f"fuzzed {name}: taken, or refused in one line", len(found), sum(not w for w, _, _ in found),
                        figure))  # fmt: skip
    return rows


def _clock(part: str, started: float) -> None:
    print(f"  {part}: until {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _tell(lines: Any) -> None:
    for line in lines:
        print(f"  broken: {line}", file=sys.stderr, flush=True)
