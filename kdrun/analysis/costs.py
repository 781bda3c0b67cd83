"""What a run cost, from its metrics.jsonl: rates over the whole run, not those of its last moments."""

from __future__ import annotations

from pathlib import Path

from kdrun.runs.records import read_metrics

RATES = ("train/tokens_per_s", "train/teacher_share")


def mean_costs(run: Path) -> dict[str, float]:
    """Scored tokens per second and the teacher's share of the time, as means over the time of training.

    A report speaks of the steps since the report before it: `step_s` seconds each, validation not among them.
    """
    sums, seconds, before = dict.fromkeys(RATES, 0.0), dict.fromkeys(RATES, 0.0), 0
    for values in read_metrics(run / "metrics.jsonl"):
        if (step_s := values.get("train/step_s")) is None:
            continue
        took_s, before = step_s * (values["step"] - before), values["step"]
        for name in RATES:
            if values.get(name) is not None:
                sums[name] += values[name] * took_s
                seconds[name] += took_s
    return {name: sums[name] / seconds[name] for name in RATES if seconds[name] > 0}
