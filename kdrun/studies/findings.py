"""What a study leaves: claims with their verdicts, tables, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import fill
from typing import Any, Literal

from kdrun.studies.pictures import Animation, Picture

Verdict = Literal["holds", "holds only when", "contradicted", "doubtful"]
VERDICTS: tuple[Verdict, ...] = ("holds", "holds only when", "contradicted", "doubtful")
Table = Sequence[Mapping[str, Any]]  # rows of one shape, numbers or words


@dataclass(frozen=True)
class Claim:
    """One statement of a source beside what was measured.

    measured: the figures, with units. tolerance: the rule that made the verdict, with its bounds. condition: when it
    holds, with the verdict `holds only when`. proven: it has a proof, and --strict insists on it.
    """

    key: str
    statement: str
    source: str
    measured: str
    tolerance: str
    verdict: Verdict
    condition: str = ""
    proven: bool = False

    def __post_init__(self) -> None:
        if (self.verdict == "holds only when") != bool(self.condition):
            raise ValueError(f"{self.key}: a condition goes with the verdict 'holds only when', and with no other")

    @property
    def judgement(self) -> str:
        """The verdict with its condition."""
        return f"{self.verdict} {self.condition}".strip()


@dataclass(frozen=True)
class Findings:
    """Tables become tables/NAME.csv, pictures figures/NAME.{png,svg,csv}, animations figures/NAME.gif."""

    claims: Sequence[Claim]
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    animations: Sequence[Animation] = ()

    @property
    def failed_proofs(self) -> list[Claim]:
        """The proven claims that do not hold here."""
        return [claim for claim in self.claims if claim.proven and claim.verdict != "holds"]


def holds(condition: bool) -> Verdict:
    """`holds` or `contradicted`."""
    return "holds" if condition else "contradicted"


def holds_in(num_true: int, num_cases: int, *, where: str) -> tuple[Verdict, str]:
    """(verdict, condition) of a statement about every case; `where` is the condition if it is true in some of them."""
    if 0 < num_true < num_cases:
        return "holds only when", where
    return holds(num_true > 0), ""


def rows_with(rows: Table, **values: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values in the columns of these names."""
    return [row for row in rows if all(row[column] == value for column, value in values.items())]


def listed(values: Iterable[float], form: str = "g") -> str:
    """Numbers in words: `0.1, 0.5`."""
    return ", ".join(f"{value:{form}}" for value in values)


def as_json(findings: Findings) -> dict[str, Any]:
    """The claims as plain data, and how many have each verdict."""
    counts = {verdict: sum(claim.verdict == verdict for claim in findings.claims) for verdict in VERDICTS}
    return {"claims": [asdict(claim) for claim in findings.claims], "verdicts": counts}


def as_text(findings: Findings, *, width: int = 100) -> str:
    """The claims for a terminal: a block each, the verdict first."""
    blocks = []
    for claim in findings.claims:
        lines = [f"{claim.judgement.upper()}: {claim.statement} [{claim.source}]"]
        lines += [f"measured: {claim.measured}", f"verdict by: {claim.tolerance}"]
        wrapped = [
            fill(line, width, initial_indent="  " * bool(i), subsequent_indent="    ") for i, line in enumerate(lines)
        ]
        blocks.append("\n".join(wrapped))
    counts = as_json(findings)["verdicts"]
    blocks.append(", ".join(f"{verdict}: {count}" for verdict, count in counts.items() if count))
    return "\n\n".join(blocks)


def as_markdown(findings: Findings) -> str:
    """The claims as a table."""
    lines = ["| claim | source | measured | verdict | by |", "|---|---|---|---|---|"]
    for claim in findings.claims:
        verdict = f"**{claim.verdict}** {claim.condition}"
        cells = (claim.statement, claim.source, claim.measured, verdict, claim.tolerance)
        lines.append("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
