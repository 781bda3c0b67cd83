"""Commands that run at once in one folder: each has a directory of its own, none reads what is half written, nothing
is lost, and where only one can work the other waits or is told so."""

from __future__ import annotations

import csv
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import SMALL, read_json
from tests.torture.processes import TEACHER, Forks, finish
from tests.torture.resume import difference, is_done, lines
from tests.torture.rows import Row

PAIRS, SWEEPS, CELLS = 8, 2, 8
RESUMED, STILL_RUNNING = 8, 2
CACHES, KILLED_CACHES = 4, 4
TEACHERS, KILLED_TEACHERS = 1, 3
REPORTS = (11, 40)  # of the comparisons: 17 s of the processor each
SHORT = [*SMALL, "train.max_steps=4", "name=run"]
LONG = [*SMALL, "train.max_steps=60", "train.save_every=7", "train.log_every=1", "name=run"]
CACHED = ["teacher=cached", *SMALL, "data.max_rows=1500", "train.max_steps=2", "evaluate=false"]
NOTHING_YET = ("no such folder", "no run directory there")  # what a comparison may say before there is a run


def run(folder: Path, budget_s: float) -> list[Row]:
    """Two of everything, with comparisons beside them."""
    end = time.monotonic() + 0.9 * budget_s
    together = Together(folder)
    assert together.forks.run("teacher", "train", *TEACHER) == 0
    parts: list[tuple[str, int, Callable[[int], str]]] = [
        ("two runs started in the same instant: two directories, both whole", PAIRS, together.runs),
        ("two sweeps started in the same instant: the same", SWEEPS, together.sweeps),
        ("one run resumed twice in the same instant, or while it runs: one goes on, the other names its process",
         RESUMED + STILL_RUNNING, together.resumes),
        ("two builders of one teacher cache: one builds, both read it whole; one killed, the other takes over",
         CACHES + KILLED_CACHES, together.caches),
        ("two runs whose teacher is missing: it is made once; one killed, the other makes it",
         TEACHERS + KILLED_TEACHERS, together.teachers),
        (f"a sweep of {CELLS} with two workers: every cell once, whole; also with a worker killed, resumed", 2,
         together.workers),
    ]  # fmt: skip
    with together.compared() as comparisons:
        rows = [tally(*part, end=end) for part in parts]
    return [*rows, comparisons.row()]


def tally(promise: str, wanted: int, attempt: Callable[[int], str], *, end: float) -> Row:
    """A row of so many attempts, each of which returns what was wrong, "" for nothing; none begins after `end`."""
    faults: list[str] = []
    while len(faults) < wanted and time.monotonic() < end:
        faults.append(attempt(len(faults)))
        if faults[-1]:
            print(f"together: {promise}: {faults[-1]}", file=sys.stderr)
    missed = wanted - len(faults)
    return Row(promise, wanted, faults.count(""), f"{missed} not tried, time ran out" if missed else "")


class Together:
    """The attempts: each is given its number and returns what was wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.forks, self.outputs = folder, Forks(folder), folder / "outputs"
        self.references: dict[str, Path] = {}

    def reference(self, name: str, words: list[str]) -> Path:
        """The run of these words that is alone, made once."""
        if name not in self.references:
            assert self.forks.run(name, "train", *words, f"hydra.run.dir=outputs/alone/{name}") == 0
            self.references[name] = self.outputs / "alone" / name
        return self.references[name]

    def both(self, name: str, *words: str) -> tuple[list[Any], list[str]]:
        """Two processes of the same words, begun in the same instant and ended; and what they said."""
        names = [f"{name}-a", f"{name}-b"]
        processes = self.forks.start_at_once({each: list(words) for each in names})
        for process in processes:
            finish(process)
        return processes, [self.forks.said(name) for name in names]

    def new(self, folder: str, name: str, *words: str) -> tuple[list[Path], str]:
        """The directories that two processes make in a folder of outputs/, and what is wrong with how they end."""
        place = self.outputs / folder
        before = set(place.glob("[!.]*"))
        processes, said = self.both(name, *words)
        made = sorted(set(place.glob("[!.]*")) - before)
        if codes(processes) != [0, 0]:
            return made, f"ended with {codes(processes)}: {said}"
        return made, "" if len(made) == 2 else f"made {made}"

    def runs(self, number: int) -> str:
        """Two runs."""
        made, fault = self.new("train", f"pair-{number}", "train", *SHORT)
        return fault or "".join(difference(run, self.reference("short", SHORT)) for run in made)

    def sweeps(self, number: int) -> str:
        """Two sweeps of two cells."""
        made, fault = self.new("sweep", f"sweeps-{number}", "sweep", *SHORT, "seed=1,2")
        return fault or "".join(check_sweep(folder, made[0], cells=2) for folder in made)

    def workers(self, number: int) -> str:
        """A sweep in two worker processes, undisturbed first, then with one of them killed."""
        name, whole = f"workers-{number}", self.outputs / "sweep" / "workers-0"
        folder = whole.with_name(name)
        seeds = ",".join(map(str, range(CELLS)))
        process = self.sweep(*SHORT, "evaluate=false", f"seed={seeds}", "hydra/launcher=joblib",
                             "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder}")  # fmt: skip
        if number == 0:
            said = process.communicate()[0]
            return check_sweep(folder, whole, cells=CELLS) if process.returncode == 0 else said
        while process.poll() is None and not (len(cells_of(folder, "done")) > 1 and cells_of(folder, "running")):
            time.sleep(0.01)
        for cell in cells_of(folder, "running")[:1]:
            os.kill(read_json(cell / "run.json")["process"], signal.SIGKILL)
        said = process.communicate()[0]
        done = {cell: (cell / "run.json").read_bytes() for cell in cells_of(folder, "done")}
        if process.returncode != 1 or not 1 < len(done) < CELLS:
            return f"ended with {process.returncode} and {len(done)} cells done: {said}"
        process = self.sweep(f"resume={folder}")
        said = process.communicate()[0]
        if process.returncode != 0:
            return f"resuming ended with {process.returncode}: {said}"
        again = [cell.name for cell, record in done.items() if (cell / "run.json").read_bytes() != record]
        return f"cells {again} ran again" if again else check_sweep(folder, whole, cells=CELLS)

    def sweep(self, *words: str) -> subprocess.Popen[str]:
        """`kdrun sweep words` in a process of its own, whose workers are not forks of this one."""
        return subprocess.Popen(
            [sys.executable, "-m", "kdrun", "sweep", *words], cwd=self.folder, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def resumes(self, number: int) -> str:
        """A run that was killed, resumed by two at once; then one that is under way, resumed beside itself."""
        whole, name = self.reference("long", LONG), f"resumed-{number}"
        folder = self.outputs / name
        if number < RESUMED:
            shutil.copytree(self.killed(), folder)
            processes, said = self.both(name, "train", f"resume=outputs/{name}")
        else:
            gate = self.forks.context.Barrier(2)  # the second one is ready before it is let in: the first is short
            second = self.forks.start(f"{name}-b", "train", f"resume=outputs/{name}", gate=gate)
            first = self.forks.start(f"{name}-a", "train", *LONG, f"hydra.run.dir=outputs/{name}")
            wait(first, lambda: len(lines(folder)) > 5 * (number - RESUMED))
            gate.wait()
            processes = [first, second]
            finish(second)
            finish(first)
            said = [self.forks.said(f"{name}-{one}") for one in "ab"]
        if sorted(codes(processes)) != [0, 2]:
            return f"ended with {codes(processes)}: {said}"
        one, other = sorted(zip(processes, said, strict=True), key=lambda pair: pair[0].exitcode)
        wanted = f"kdrun: resume=outputs/{name}: process {one[0].pid} on {platform.node()} writes there; "
        if not other[1].startswith(wanted) or other[1].count("\n") != 1:
            return f"the other said: {other[1]}"
        return difference(folder, whole)

    def killed(self) -> Path:
        """A run that was killed after its second checkpoint, made once."""
        folder = self.outputs / "alone" / "killed"
        if "killed" not in self.references:
            process = self.forks.start("killed", "train", *LONG, f"hydra.run.dir={folder}")
            wait(process, (folder / "checkpoints" / "step-14").exists)
            process.kill()
            process.join()
            self.references["killed"] = folder
        return self.references["killed"]

    def caches(self, number: int) -> str:
        """Two builders of one cache: the command, or the run that finds it missing."""
        name = f"caches-{number}"
        words = [["cache"], ["train"]][number % 2] + [*CACHED, f"teacher.directory={name}"]
        if number < CACHES:
            processes, said = self.both(name, *words)
            wanted = [0, 0]
            if (passes := "".join(said).count("one pass of")) != 1:
                return f"{passes} passes of the teacher: {said}"
        else:
            processes, said = self.one_killed(name, words, "one pass of", at=lambda: half_built(self.folder / name))
            wanted = [-9, 0]
        if sorted(codes(processes)) != wanted:
            return f"ended with {codes(processes)}: {said}"
        ours, first = (stored(self.folder / place) for place in (name, f"caches-{number % 2}"))
        return "" if ours == first and ours else "the cache differs from the first one"

    def one_killed(
        self, name: str, words: list[str], works: str, *, at: Callable[[], bool]
    ) -> tuple[list[Any], list[str]]:
        """Two processes of the same words, of which the one that says that it `works` is killed soon after `at`."""
        names, draw = [f"{name}-a", f"{name}-b"], random.Random(name)
        processes = self.forks.start_at_once({each: list(words) for each in names})
        wait(processes[0], lambda: at() and any(works in self.forks.said(one) for one in names))
        time.sleep(draw.uniform(0, 0.1))
        for process, one in zip(processes, names, strict=True):
            if works in self.forks.said(one):
                process.kill()
        for process in processes:
            finish(process)
        return processes, [self.forks.said(one) for one in names]

    def teachers(self, number: int) -> str:
        """Two runs that find no teacher, in a folder of their own whose conf/ has it trained in a few steps."""
        from kdrun.cli import CONF

        place = Together(self.folder / f"teachers-{number}")
        shutil.copytree(CONF, place.folder / "conf")
        fine_tuning = place.folder / "conf" / "train" / "tiny_teacher.yaml"
        fine_tuning.write_text(fine_tuning.read_text().replace("max_steps: 1400", "max_steps: 20"))
        teacher = place.outputs / "teachers" / "tiny-unicode"
        if number < TEACHERS:
            made, fault = place.new("train", "run", "train", *SHORT)
            said = [place.forks.said(f"run-{one}") for one in "ab"]
            if not fault and (times := "".join(said).count("No teacher at")) != 1:
                fault = f"the teacher was made {times} times: {said}"
            return fault or difference(*made) or ("" if is_done(teacher) else "the teacher is not done")
        begun, least = teacher.with_name(".tiny-unicode.begun"), number - TEACHERS  # lines: none in the first one
        processes, said = place.one_killed(
            "run", ["train", *SHORT], "No teacher at", at=lambda: begun.exists() and len(lines(begun)) >= least
        )
        if sorted(codes(processes)) != [-9, 0]:
            return f"ended with {codes(processes)}: {said}"
        (made,) = place.outputs.glob("train/*")
        return "" if is_done(teacher) and is_done(made) else "not done"

    @contextmanager
    def compared(self) -> Iterator[Comparisons]:
        """Comparisons and reports over and over while the body runs."""
        comparisons = Comparisons(self.forks)
        thread = threading.Thread(target=comparisons.loop)
        thread.start()
        try:
            yield comparisons
        finally:
            comparisons.ended.set()
            thread.join()


class Comparisons:
    """Tables made while runs write, their lines of finished runs held against those of the last table."""

    def __init__(self, forks: Forks) -> None:
        self.forks, self.ended = forks, threading.Event()
        self.faults: list[str] = []
        self.found: list[dict[str, str]] = []
        self.reports = 0

    def loop(self) -> None:
        """Until it is ended: every source in turn, a table of it or a report."""
        while not self.ended.wait(2):
            number = len(self.faults)
            newest = sorted(path.name for path in self.forks.folder.glob("outputs/sweep/[!.]*"))[-1:]
            sources = ["", "/train", "/sweep", *(f"/sweep/{name}" for name in newest)]
            source = f"outputs{sources[number % len(sources)]}"
            self.faults.append(self.report(number, source) if number in REPORTS else self.table(number, source))

    def table(self, number: int, source: str) -> str:
        """What is wrong with one table."""
        path = self.forks.folder / f"compared-{number}.csv"
        code = self.forks.run(f"compared-{number}", "compare", source, "--csv", str(path))
        if code == 0:
            self.found += finished(path)
        return self.check(code, f"compared-{number}")

    def report(self, number: int, source: str) -> str:
        """What is wrong with one report."""
        path = self.forks.folder / f"reported-{number}.html"
        code = self.forks.run(f"reported-{number}", "report", source, "-o", str(path))
        self.reports += code == 0
        if code == 0 and not path.read_text().rstrip().endswith("</html>"):
            return f"half a page of {source}"
        return self.check(code, f"reported-{number}")

    def check(self, code: int | None, name: str) -> str:
        """What is wrong with the end of a command."""
        said = self.forks.said(name)
        early = code == 2 and said.count("\n") == 1 and any(part in said for part in NOTHING_YET)
        return "" if code == 0 or early else f"{name} ended with {code}: {said}"

    def row(self) -> Row:
        """Tables kept: those without a fault, when all their numbers are the last ones."""
        path = self.forks.folder / "last.csv"
        assert self.forks.run("last", "compare", "outputs", "--csv", str(path)) == 0
        last = {line["folder"]: line for line in finished(path)}
        for line in self.found:
            final = last[line["folder"]]
            if changed := [key for key, value in line.items() if key != "run" and value != final.get(key, "")]:
                self.faults.append(f"{line['folder']}: {changed} changed after it was done")
        for fault in filter(None, self.faults):
            print(f"together: {fault}", file=sys.stderr)
        return Row(
            "kdrun compare and report while these write: the last numbers of every finished run, no traceback",
            len(self.faults), self.faults.count(""),
            f"{len(self.found)} lines of finished runs in the tables, {self.reports} reports",
        )  # fmt: skip


# -- looking -----------------------------------------------------------------------------------------------------------


def codes(processes: list[Any]) -> list[int]:
    return [process.exitcode for process in processes]


def wait(process: Any, happened: Callable[[], bool]) -> None:
    """Until something has happened, or the process has ended."""
    while process.exitcode is None and not happened():
        time.sleep(0.001)


def cells_of(folder: Path, status: str) -> list[Path]:
    """The cells of a sweep that are in a state."""
    records = sorted(folder.glob("*/run.json"))
    return [path.parent for path in records if read_json(path)["status"] == status]


def check_sweep(folder: Path, whole: Path, *, cells: int) -> str:
    """What is wrong with a sweep that is done, or differs in it from one that was not disturbed."""
    numbers = [str(number) for number in range(cells)]
    found = sorted(path.parent.name for path in folder.glob("*/run.json"))
    if found != sorted(numbers) or len(read_json(folder / "sweep.json")["cells"]) != cells:
        return f"{folder} has cells {found}"
    return "".join(difference(folder / number, whole / number) for number in numbers)


def half_built(cache: Path) -> bool:
    return any(cache.glob("*/*.partial"))


def stored(cache: Path) -> dict[str, bytes]:
    """Every file of tensors in a directory of caches."""
    kept = (path for path in cache.rglob("*") if path.suffix in (".bin", ".safetensors"))
    return {str(path.relative_to(cache)): path.read_bytes() for path in kept}


def finished(table: Path) -> list[dict[str, str]]:
    """The lines of a table that are about finished students."""
    with table.open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["status"] == "done" and "teachers" not in line["folder"]]
