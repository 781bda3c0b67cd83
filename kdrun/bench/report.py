"""What a benchmark found, as JSON and as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdrun.bench.contest import Entry, Outcome, Plan, judge
from kdrun.bench.timing import ratio, spread

Judgement = dict[str, Any]
UNITS = {"scored_tokens_per_s": "scored tokens/s", "tokens_per_s": "tokens/s"}  # further figures and their headings


def judgements(plan: Plan, outcomes: Sequence[Outcome]) -> list[Judgement]:
    """Every target of the table's cases that could be measured."""
    cases = {id(case) for case in plan.cases}
    found = [
        judge(target, outcome, outcomes) for target in plan.targets for outcome in outcomes if id(outcome.case) in cases
    ]
    return [judgement for judgement in found if judgement is not None]


def as_json(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that was measured: each second of each round, medians, quartiles, ratios, peaks, targets."""
    curve = {id(case) for case in plan.curve}
    return {
        "reference": plan.reference,
        "floor": plan.floor,
        "memory_is": plan.memory_means,
        "cases": [
            {
                "label": outcome.case.label,
                "sizes": outcome.case.sizes,
                "curve_only": id(outcome.case) in curve,
                "entries": [_entry(plan, outcome, entry) for entry in outcome.entries],
            }
            for outcome in outcomes
        ],
        "missing": missing(outcomes),
        "targets": judgements(plan, outcomes),
    }


def _entry(plan: Plan, outcome: Outcome, entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "note": entry.note}
    if entry.timing is None:
        return facts
    of_time = spread(entry.timing.seconds)
    facts |= {
        "first_s": entry.timing.first_s,
        "seconds": list(entry.timing.seconds),
        "median_s": of_time.median,
        "quartiles_s": [of_time.low, of_time.high],
        "peak_bytes": entry.peak_bytes,
        "ratio": None,
        "floor_share": None,
        **entry.extra,
    }
    reference, floor = outcome.entry(plan.reference), outcome.entry(plan.floor or "")
    if reference is not None and reference.timing is not None:
        of_ratio = ratio(entry.timing, reference.timing)
        facts["ratio"] = {"median": of_ratio.median, "quartiles": [of_ratio.low, of_ratio.high]}
    if floor is not None and floor.timing is not None and floor is not entry:
        facts["floor_share"] = plan.floor_units / ratio(entry.timing, floor.timing).median
    return facts


def as_markdown(found: dict[str, Any], *, floor_means: str) -> str:
    """The tables of `as_json`, then the targets."""
    parts = []
    for case in found["cases"]:
        lines = [_row(found, entry, floor_means) for entry in case["entries"]]
        names = dict.fromkeys(name for line in lines for name in line)
        headings = [name for name in names if any(line.get(name) for line in lines)]
        parts += [case["label"], _table(headings, [[line.get(name, "") for name in headings] for line in lines])]
    weighed = any(entry.get("peak_bytes") is not None for case in found["cases"] for entry in case["entries"])
    memory = f" Memory: highest in a process of its own, {found['memory_is']}." if weighed else ""
    parts.append(
        f"Median of the rounds [quartiles]; ratios are taken within a round.{memory} First call: with compilation, not "
        "among the rounds."
    )
    if found["missing"]:
        parts.append("\n".join(f"- {line}" for line in found["missing"]))
    if found["targets"]:
        parts.append("\n".join(map(describe, found["targets"])))
    return "\n\n".join(parts) + "\n"


def _row(found: dict[str, Any], entry: dict[str, Any], floor_means: str) -> dict[str, str]:
    if "median_s" not in entry:
        return {"contestant": entry["name"], "ms": entry["note"]}
    of_ratio, share, peak = entry["ratio"], entry["floor_share"], entry["peak_bytes"]
    return {
        "contestant": entry["name"],
        "ms": _spread(1e3 * entry["median_s"], *(1e3 * s for s in entry["quartiles_s"])),
        f"x {found['reference']}": _spread(of_ratio["median"], *of_ratio["quartiles"]) if of_ratio else "",
        floor_means: f"{share:.2f}" if share else "",
        **{heading: f"{entry[name]:,.0f}" if name in entry else "" for name, heading in UNITS.items()},
        "memory (GiB)": f"{peak / 2**30:.2f}" if peak is not None else "",
        "first call (s)": f"{entry['first_s']:.3g}",
    }


def _spread(median: float, low: float, high: float) -> str:
    digits = ".3g" if max(median, high) < 1000 else ",.0f"
    return f"{median:{digits}} [{low:{digits}}, {high:{digits}}]"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column flush left, the others right."""
    first, *others = (max(map(len, column)) for column in zip(headings, *rows, strict=True))

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join([cells[0].ljust(first), *map(str.rjust, cells[1:], others)]) + " |"

    rule = "|" + "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)]) + "|"
    return "\n".join([line(headings), rule, *map(line, rows)])


def describe(judgement: Judgement) -> str:
    """A target in one line: what is compared, the measured ratio, the limit, met or missed."""
    what = "" if judgement["measure"] == "time" else " (memory)"
    quartiles = f" [{judgement['low']:.3g}, {judgement['high']:.3g}]" if judgement["measure"] == "time" else ""
    wanted = "at least" if judgement["at_least"] else "at most"
    return (
        f"- {judgement['contestant']} / {judgement['against']}{what}: {judgement['ratio']:.3g}{quartiles}, "
        f"{wanted} {judgement['limit']:.3g}: {'met' if judgement['met'] else 'MISSED'} ({judgement['case']})"
    )


def missing(outcomes: Sequence[Outcome]) -> list[str]:
    """Contestants that did not take part, each with why."""
    notes = {entry.name: entry.note for outcome in outcomes for entry in outcome.entries if entry.timing is None}
    return [f"{name}: {note}" for name, note in notes.items()]
