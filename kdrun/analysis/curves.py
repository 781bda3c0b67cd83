"""Validation curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdrun.analysis.comparison import Row
from kdrun.runs.records import read_metrics

PANELS = {
    "valid/nll": "student NLL on the data\n(nats a token)",
    "valid/fkl": "KL(teacher || student)\n(nats a token)",
    "valid/head_gap": "head gap\n(sum of |p - q|)",
    "valid/tail_gap": "tail gap\n(sum of |p - q|)",
}
# Okabe and Ito's colours, told apart by colour-blind eyes too, with line styles for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """metric -> (step, value) pairs of a run's metrics.jsonl; a torn last line is left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for values in read_metrics(run / "metrics.jsonl"):
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("step", "time_s"):
                curves.setdefault(name, []).append((values["step"], value))
    return curves


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw the validation curves of the students, one panel a metric, into a PNG or SVG file; teachers as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    students = [row for row in rows if row.settings.get("role") != "teacher"] or rows
    teacher_nll = set()
    for i, row in enumerate(students):
        curves = read_curves(row.folder)
        teacher_nll |= {round(value, 4) for _, value in curves.get("valid/teacher_nll", [])[:1]}
        for axis, name in zip(axes, PANELS, strict=True):
            if points := curves.get(name):
                steps, values = zip(*points, strict=True)
                turn = i // len(COLOURS) if len(students) > len(COLOURS) else i
                colour, style = COLOURS[i % len(COLOURS)], STYLES[turn % len(STYLES)]
                axis.plot(steps, values, label=row.label, color=colour, linestyle=style, linewidth=1.6)
    for value in sorted(teacher_nll):
        axes[0].axhline(value, color="0.4", linewidth=0.8)
        axes[0].annotate("teacher", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    for axis, title in zip(axes, PANELS.values(), strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("optimiser steps", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axes[1].get_legend_handles_labels() if axes[1].lines else axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 7) or 1, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
