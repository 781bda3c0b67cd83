"""kdrun bench: contestants of one task side by side; a table, JSON with every second measured, one picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from kdrun.commands.assembly import choose_device, cpu_threads, relative
from kdrun.config import BenchConfig
from kdrun.config.bench import Curve, DataBench, Measured, PairBench, RolloutBench, StartupBench, StepBench
from kdrun.data.examples import Example
from kdrun.errors import UserError
from kdrun.runs.directory import RunDirectory, write_json, write_text
from kdrun.runs.progress import progress
from kdrun.runs.provenance import versions

log = logging.getLogger(__name__)

PEERS = ("trl", "liger-kernel", "transformers", "torch", "triton")
EMBEDDED = ("docstrings", "unicode")


def bench(config: BenchConfig, directory: Path, *, overrides: Sequence[str]) -> float:
    """Run a benchmark in `directory`: bench.json, table.md, picture.png. Returns how many targets were missed."""
    run = RunDirectory.start(
        directory,
        command="bench",
        config=config.model_dump(mode="json"),
        overrides=overrides,
        extra={"name": config.name},
    )
    with run.recorded(), cpu_threads(config.bench.threads):
        return _run(config, run.path)


def check_bench(config: BenchConfig) -> None:
    """What the config alone cannot say: the data and the tokenizer are there.

    Raises:
        UserError: naming the key.
    """
    section = config.bench
    if section.device.startswith("cuda"):
        choose_device(section.device, key="bench.device")
    if not isinstance(section, DataBench):
        return
    if section.data not in EMBEDDED:
        from kdrun.data.jsonl import check_jsonl

        check_jsonl(section.data, key="bench.data")
    if section.tokenizer is not None and not Path(section.tokenizer, "tokenizer.json").is_file():
        raise UserError(
            f"bench.tokenizer={section.tokenizer}: no tokenizer.json there; give a folder that holds one, or null"
        )


def _run(config: BenchConfig, folder: Path) -> float:
    import torch

    from kdrun.bench.contest import hold, num_measurements
    from kdrun.bench.memory import silence
    from kdrun.bench.picture import draw
    from kdrun.bench.report import as_json, as_markdown

    silence()
    section = config.bench
    device = choose_device(section.device, key="bench.device")
    plan = _plan(config, device)
    rounds = [section.repetitions] * len(plan.cases)
    rounds += [section.curve_repetitions] * len(plan.curve) if isinstance(section, Curve) else []
    cases = list(zip([*plan.cases, *plan.curve], rounds, strict=True))
    how: dict[str, Any] = {"memory": section.memory, "only": section.only}
    total = sum(num_measurements(case, repetitions=repetitions, **how) for case, repetitions in cases)
    with progress(config.name, total) as bar:
        outcomes = [
            hold(case, repetitions=repetitions, threads=section.threads, report=log.info, advance=bar, **how)
            for case, repetitions in cases
        ]
    found: dict[str, Any] = {
        "bench": section.name,
        "device": _name_of(device),
        "threads": torch.get_num_threads(),
        "versions": versions(PEERS),
        **as_json(plan, outcomes),
    }
    write_json(folder / "bench.json", found)
    table = as_markdown(found, floor_means=plan.floor_means)
    write_text(folder / "table.md", table)
    draw(found, folder / "picture.png", axis=plan.axis)
    print(table)
    print(relative(folder))
    return float(sum(not judgement["met"] for judgement in found["targets"]))


def _plan(config: BenchConfig, device: str) -> Any:
    """The benchmark's plan, by the module of its name: every key that is not about measuring is an argument."""
    section = config.bench
    values = section.model_dump(exclude={"name", "curve_repetitions", *Measured.model_fields})
    if isinstance(section, DataBench):
        values["examples"] = _examples(values.pop("data"), values.pop("max_rows"), config.seed)
    if not isinstance(section, StartupBench):
        values |= {"device": device, "seed": config.seed}
    if isinstance(section, PairBench):
        values = _with_pair(values)
    if isinstance(section, StepBench | RolloutBench):
        values |= {"repetitions": section.repetitions, "threads": section.threads}
    return import_module(f"kdrun.bench.{section.name}").plan(**values)


def _with_pair(values: dict[str, Any]) -> dict[str, Any]:
    """A section's values with those of the pair put together under `pair`."""
    from kdrun.bench.pair import Pair

    for role in ("student", "teacher"):
        values[role] = values.pop(f"{role}_layers"), values.pop(f"{role}_width"), values.pop(f"{role}_heads")
    of_pair = {field.name: values.pop(field.name) for field in fields(Pair)}
    return {"pair": Pair(**of_pair), **values}


def _examples(data: str, max_rows: int, seed: int) -> list[Example]:
    """A random choice of a file's examples, or of an embedded set's training split; the same for the same seed."""
    import random

    if data in EMBEDDED:
        from kdrun.data.sources import load_splits

        examples = load_splits(data).train
    else:
        from kdrun.data.jsonl import read_jsonl

        examples = read_jsonl(data, key="bench.data")
    return random.Random(seed).sample(examples, min(max_rows, len(examples)))


def _name_of(device: str) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu ({platform.machine()})"
