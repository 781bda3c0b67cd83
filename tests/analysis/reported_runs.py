"""Runs for a report, with names, settings and texts that would break a careless page."""

from pathlib import Path
from typing import Any

from kdrun.runs.directory import RunDirectory, write_json
from tests.analysis.made_runs import add_evaluation, make_run

NASTY = "_a <b>\"'$x$ & </script><script>alert(1)</script>]]> {{ 7 * 7 }}"


def make_sweep(root: Path) -> Path:
    """AKL at three mu and FKL, two seeds each, a teacher's evaluation and a run that failed."""
    for i, (loss, mu) in enumerate([("akl", 0.3), ("akl", 0.5), ("akl", 0.7), (NASTY, None)]):
        for seed in (1, 2):
            settings: dict[str, Any] = {"seed": seed, "loss": {"name": loss}, "data": {"path": NASTY}}
            if mu is not None:
                settings["loss"]["mu"] = mu
            run = make_run(root / f"{i}-{seed}", settings=settings, name=f"{NASTY} {loss[:3]} {mu}")
            nll = 2.0 + 0.1 * i + 0.01 * seed
            text = f"{NASTY}\n{loss} {mu} {'word ' * 60}"
            lines = [line(j, text=text, nll=nll + 0.05 * j, rouge=10.0 * ((i + j) % 4)) for j in range(8)]
            add_evaluation(run / "eval" / "quick", lines, num_examples=8)
            write_json(run / "summary.json", {"train_s": 10.0 + i + seed, "train/peak_memory_gib": 1.0 + i / 10})
    make_run(root / "failed", name="broken", status="failed")
    RunDirectory.open(root / "failed", key="run").note(error="ValueError: <b>the loss is not finite</b>")
    return root


def line(index: int, *, text: str, nll: float, rouge: float) -> dict[str, Any]:
    """A line of examples.jsonl."""
    return {
        "instruction": f"Question {index} {NASTY}", "input": "", "references": [f"reference {NASTY}"], "nll": nll,
        "fkl": nll / 2, "greedy": {"text": text, "rouge_l": rouge, "finished": True},
    }  # fmt: skip
