"""One picture of a benchmark: time and memory, against a size where there is one, else as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind eyes too; line styles and markers tell them apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MEASURES = {"time per call (s)": ("median_s", 1.0), "peak memory (GiB)": ("peak_bytes", 2**-30)}


def draw(found: dict[str, Any], path: Path, *, axis: str | None) -> None:
    """Write a PNG or SVG from what `as_json` gave.

    Args:
        axis: label of the size to draw against, beginning with its name in `sizes`; None draws bars of the first case.
    """
    from matplotlib.figure import Figure

    cases = found["cases"][:1] if axis is None else _along(found["cases"], axis.split()[0])
    panels = {label: key for label, key in MEASURES.items() if _values(cases, key[0])}
    figure = Figure(figsize=(5.5 * max(1, len(panels)), 4.4), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for area, (label, (key, unit)) in zip(axes, panels.items(), strict=False):
        area.set_xlabel(axis or label)
        if axis is None:
            _bars(area, cases[0], key, unit)
        else:
            area.set_ylabel(label)
            _lines(area, cases, key, unit, axis.split()[0])
    if axis is not None:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"kdrun bench {found['bench']}: {found['device']}, threads: {found['threads']}", fontsize=10)
    figure.savefig(path, dpi=150)


def _along(cases: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """The curve's cases, and those of the table that differ from them in `size` alone; without a curve the first."""
    curve = [case for case in cases if case["curve_only"]]
    if not curve:
        return cases[:1]
    known = {case["sizes"][size] for case in curve}
    alike = [
        case
        for case in cases
        if case["sizes"][size] not in known and {**case["sizes"], size: 0} == {**curve[0]["sizes"], size: 0}
    ]
    return [*alike, *curve]


def _values(cases: list[dict[str, Any]], key: str) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """name -> (case, entry) of everything that was measured, in the order of the table."""
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for case in cases:
        for entry in case["entries"]:
            if entry.get(key) is not None:
                found.setdefault(entry["name"], []).append((case, entry))
    return found


def _lines(area: Any, cases: list[dict[str, Any]], key: str, unit: float, size: str) -> None:
    """One line a contestant that was measured at every size, with the quartiles of its time as a band."""
    timed = [name for name, values in _values(cases, "median_s").items() if len(values) == len(cases)]
    measured = _values(cases, key)
    for i, name in enumerate(timed):  # by its place among the timed, so that a name looks the same in both panels
        values = sorted(measured.get(name, []), key=lambda pair: pair[0]["sizes"][size])
        if not values:
            continue
        xs = [case["sizes"][size] for case, _ in values]
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)], "marker": MARKERS[i % 8]}
        area.plot(xs, [entry[key] * unit for _, entry in values], label=name, **look)
        if key == "median_s":
            low, high = ([entry["quartiles_s"][end] for _, entry in values] for end in (0, 1))
            area.fill_between(xs, low, high, color=look["color"], alpha=0.15, linewidth=0)
    area.set_xlim(left=0)
    area.set_ylim(bottom=0)
    area.grid(alpha=0.3)


def _bars(area: Any, case: dict[str, Any], key: str, unit: float) -> None:
    entries = [entry for entry in case["entries"] if entry.get(key) is not None][::-1]
    values = [entry[key] * unit for entry in entries]
    colours = {"ours": COLOURS[0], "peer": COLOURS[1], "textbook": COLOURS[2], "floor": "0.6"}
    bars = area.barh([entry["name"] for entry in entries], values, color=[colours[entry["kind"]] for entry in entries])
    area.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
    area.margins(x=0.15)
