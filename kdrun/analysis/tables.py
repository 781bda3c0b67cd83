"""Tables of groups: quality, cost and verdicts, and how they are spelled for a terminal, a paper and a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdrun.analysis.comparison import write_sheet
from kdrun.analysis.seeds import Group, differing
from kdrun.analysis.verdicts import Verdict, more_is_better, verdicts

# Measures of the main table, in its order, by the end of their keys, with their headings.
MEASURES = {
    "nll": "NLL",
    "fkl": "FKL",
    "rkl": "RKL",
    "top1_agreement": "top-1",
    "greedy/rouge_l": "ROUGE-L greedy",
    "sample/rouge_l": "ROUGE-L sampled",
    "greedy/bertscore_f1": "BERTScore greedy",
    "sample/bertscore_f1": "BERTScore sampled",
}
COSTS = {
    "train_s": "train s",
    "train/peak_memory_gib": "peak GiB",
    "train/tokens_per_s": "tokens/s",
    "train/teacher_share": "teacher share",
}


Judged = Sequence[tuple[Group, Sequence[Verdict]]]  # groups with their verdicts against one baseline


@dataclass(frozen=True)
class Table:
    """A header, lines of cells and a note below; `bold` are the (line, column) of what is proven best."""

    header: list[str]
    lines: list[list[Any]]
    note: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()

    def cells(self) -> list[list[str]]:
        """The lines as text."""
        return [[spell(cell) for cell in line] for line in self.lines]

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers, to be set flush right."""
        return any(isinstance(line[column], int | float | Spread) for line in self.lines)

    def as_csv(self) -> str:
        """Comma-separated values in full precision, standard deviations in columns of their own; without the note."""
        columns: list[list[Any]] = []
        for j, head in enumerate(self.header):
            cells = [line[j] for line in self.lines]
            columns.append([head, *(cell.mean if isinstance(cell, Spread) else cell for cell in cells)])
            deviations = [cell.sd if isinstance(cell, Spread) else None for cell in cells]
            if any(sd is not None for sd in deviations):
                columns.append([f"{head} sd", *deviations])
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(zip(*columns, strict=True))
        return out.getvalue()

    def as_markdown(self) -> str:
        """A pipe table, the note as a paragraph below."""
        lines = [self.header, ["---"] * len(self.header)]
        for i, line in enumerate(self.cells()):
            lines.append([f"**{cell}**" if (i, j) in self.bold else cell for j, cell in enumerate(line)])
        text = "".join("| " + " | ".join(_escaped(cell, MARKDOWN) for cell in line) + " |\n" for line in lines)
        return text + (f"\n{_escaped(self.note, MARKDOWN)}\n" if self.note else "")

    def as_latex(self) -> str:
        """A tabular for the booktabs package, escaped, the note as a comment below."""
        columns = "".join("r" if self.numeric(j) else "l" for j in range(len(self.header)))
        lines = [[_escaped(cell, LATEX) for cell in line] for line in self.cells()]
        for i, j in self.bold:
            lines[i][j] = rf"\textbf{{{lines[i][j]}}}"
        rows = [" & ".join(line) + r" \\" for line in lines]
        return "\n".join([
            rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
            " & ".join(_escaped(name, LATEX) for name in self.header) + r" \\", r"\midrule", *rows, r"\bottomrule",
            r"\end{tabular}", *(f"% {line}" for line in self.note.splitlines()), "",
        ])  # fmt: skip


MARKDOWN = {"|": r"\|", "<": "&lt;", "\n": " "}
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "+-": r"$\pm$", "\n": " ",
}  # fmt: skip


def _escaped(text: str, table: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, table)), lambda found: table[found[0]], text)


@dataclass(frozen=True)
class Spread:
    """A mean over the seeds and their standard deviation; of `missing` runs there is no number."""

    mean: float
    sd: float | None
    missing: int = 0

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 10 else 1
        text = f"{self.mean:.{digits}f}"
        text += f" +- {self.sd:.{digits}f}" if self.sd is not None else ""
        return text + (f" ({self.missing} missing)" if self.missing else "")


def spell(value: Any) -> str:
    """A cell as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # 5e-05 is no 0.000
        return f"{value:.3f}" if abs(value) < 10 and value == round(value, 3) else f"{value:.4g}"
    return str(value)


def spread(group: Group, metric: str) -> Spread | None:
    """The group's mean and standard deviation of a metric; None when no run has it."""
    if (mean := group.mean(metric)) is None:
        return None
    return Spread(mean, group.sd(metric), len(group.rows) - len(group.values(metric)))


def main_table(
    groups: Sequence[Group], baseline: Group | None = None, *, headings: dict[str, str] | None = None
) -> Table:
    """Settings that differ x the main measures, mean +- standard deviation over seeds.

    The best value of a column is bold only where its paired interval against the second best student excludes zero.

    Args:
        baseline: comes first.
        headings: metric key -> heading; None: the main measures.
    """
    if baseline is not None:
        groups = [baseline, *(group for group in groups if group is not baseline)]
    if headings is None:
        headings = main_headings([name for group in groups for name in group.metrics])
    bold = {(groups.index(best), name) for name in headings if (best := _proven_best(groups, name)) is not None}
    return _table(groups, headings, shown=differing(groups), bold=bold)


def cost_table(groups: Sequence[Group]) -> Table:
    """Time, memory, speed and the teacher's share of the time, mean +- standard deviation over seeds."""
    present = {name for group in groups for name in group.metrics}
    groups = [group for group in groups if present & COSTS.keys() & set(group.metrics)]
    table = _table(groups, {name: heading for name, heading in COSTS.items() if name in present}, shown=[])
    return replace(table, note="")


def verdict_table(baseline: Group, judged: Judged, headings: dict[str, str]) -> Table:
    """One line a measure and group: the difference to the baseline, its interval, p value and what it says.

    Args:
        headings: the measures to show, metric key -> heading.
    """
    chosen = [(group, v) for measure in headings for group, found in judged for v in found if v.measure == measure]
    lines = [[headings[v.measure], v.baseline, group.label, v.interval, f"{v.p:.2g}", v.said] for group, v in chosen]
    header = ["measure", baseline.label, "run", "difference [95 % interval]", "p", "verdict"]
    return Table(header, lines, verdict_note([v for _, v in chosen]))


def write_verdicts(path: Path, judged: Sequence[tuple[Group, Judged]]) -> None:
    """Every verdict in full precision, a line each, as CSV."""
    lines: list[Sequence[Any]] = [["run", "against", *(field.name for field in fields(Verdict)), "verdict"]]
    for baseline, found in judged:
        for group, each in found:
            lines += [[group.label, baseline.label, *astuple(verdict), verdict.said] for verdict in each]
    write_sheet(path, lines)


def verdict_note(found: Sequence[Verdict]) -> str:
    """How the verdicts came about and what they do not say."""
    if not found:
        return ""
    n, alone = len(found), any(verdict.num_seeds == 1 for verdict in found)
    note = (
        f"Means over examples, paired; 95 % bootstrap intervals over {_range([v.num_examples for v in found])} examples"
    )
    seeds = [v.num_seeds for v in found if v.num_seeds > 1]
    note += f" and, where both sides have several, {_range(seeds)} seeds." if seeds else "."
    if alone:
        note += (
            " With one seed on a side the noise of its training is not in the interval: train more seeds (seed=0,1,2)."
        )
    if n > 1:
        note += (
            f" {n} comparisons, none corrected for: about {0.05 * n:.1f} exclude zero by chance where nothing differs; "
            f"after Bonferroni, p below {0.05 / n:.2g} counts."
        )
    return note


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def main_headings(present: Sequence[str]) -> dict[str, str]:
    """Metric key -> heading: the main measures of every evaluation, with its name when there are several."""
    names = [name.removesuffix("/nll") for name in present if name.endswith("/nll")]
    names = [name for name in dict.fromkeys(names) if name != "valid"]
    headings: dict[str, str] = {}
    for name in names:
        before = f"{name} " if len(names) > 1 else ""
        found = {f"{name}/{measure}": before + heading for measure, heading in MEASURES.items()}
        start = f"{name}/judge/"
        found |= {
            key: f"{before}{key.removeprefix(f'{name}/').replace('/', ' ')}"
            for key in dict.fromkeys(present)
            if (key.startswith(start) and key.endswith(("/quality", "/diversity", "/win", "/win_rate")))
            or (key.startswith(f"{name}/harness/") and key.endswith("/acc"))
        }
        headings |= {key: heading for key, heading in found.items() if key in present}
    return headings


def _table(
    groups: Sequence[Group], headings: dict[str, str], *, shown: Sequence[str], bold: set[tuple[int, str]] | None = None
) -> Table:
    columns: list[tuple[str, list[Any]]] = [("run", [group.label for group in groups])]
    if any(group.status != "done" for group in groups):
        columns.append(("status", [group.status for group in groups]))
    columns += [(key, [group.settings.get(key, "") for group in groups]) for key in shown]
    with_seeds = any(len(group.rows) > 1 for group in groups)
    if with_seeds:
        columns.append(("seeds", [len(group.rows) for group in groups]))
    place = {name: len(columns) + i for i, name in enumerate(headings)}
    columns += [(heading, [spread(group, name) for group in groups]) for name, heading in headings.items()]
    lines = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    note = "Mean +- standard deviation over the seeds." if with_seeds else ""
    marked = frozenset((i, place[name]) for i, name in bold or ())
    return Table([heading for heading, _ in columns], lines, note, marked)


def _proven_best(groups: Sequence[Group], metric: str) -> Group | None:
    """The best student in a metric, where its interval against the second best excludes zero."""
    more = more_is_better(metric)
    ranked = [g for g in groups if g.role == "student" and g.status == "done" and g.mean(metric) is not None]
    ranked.sort(key=lambda group: group.mean(metric) or 0.0, reverse=bool(more))
    if more is None or len(ranked) < 2:
        return None
    found = verdicts(ranked[0], ranked[1], measures=[metric])
    return ranked[0] if found and found[0].better else None
