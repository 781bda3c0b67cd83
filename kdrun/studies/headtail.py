"""Which gap closes first in a real distillation, the head's or the tail's? Read from the metrics of finished runs.

The claim is the AKL paper's (Wu et al., arXiv 2404.02657, section 3 and Figures 2 and 3), shown there on toy
distributions: in the first epochs forward KL works on the head and reverse KL on the tail. Head and tail: the rule
`code` with mass 0.5 (losses/diagnostics.py), whatever loss is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.analysis.curves import read_curves
from kdrun.errors import UserError
from kdrun.runs.directory import find_runs
from kdrun.studies.contenders import contenders
from kdrun.studies.findings import Claim, Findings, Verdict
from kdrun.studies.intervals import Mean, mean_over_seeds
from kdrun.studies.pictures import Curve, Panel, Picture

PAPER = "Wu et al. 2404.02657, section 3"
MEASURES = {
    "head_gap": "sum of |p - q| on the head",
    "tail_gap": "sum of |p - q| on the tail",
    "akl_weight": "AKL's weight a",
    "fkl": "KL(teacher || student) (nats a token)",
    "rkl": "KL(student || teacher) (nats a token)",
    "jsd": "JSD (nats a token)",
    "tvd": "TVD",
    "top1_agreement": "top-1 agreement",
    "student_entropy": "student's entropy (nats a token)",
    "teacher_entropy": "teacher's entropy (nats a token)",
}
OBJECTIVE = {"name", "kd_ratio", "temperature", "temperature_squared", "match_grad_norm"}


@dataclass(frozen=True)
class Run:
    """One distillation: its loss, its seed, and what was measured at `steps` (curves: name -> a value a step)."""

    label: str
    loss: str
    seed: int
    steps: np.ndarray
    curves: dict[str, np.ndarray]

    @property
    def lead(self) -> np.ndarray:
        """How much further the head is than the tail: the tail's gap minus the head's, each as a share of its start."""
        head, tail = self.curves["head_gap"], self.curves["tail_gap"]
        return tail / tail[0] - head / head[0]

    @property
    def total(self) -> np.ndarray:
        """Sum of abs(p - q) over the vocabulary, twice the total variation distance."""
        return self.curves["head_gap"] + self.curves["tail_gap"]


def study(
    *, runs: str | None, part: str, windows: Sequence[float], begin: Callable[[int], Callable[..., None]]
) -> Findings:
    """The claims judged on the runs below a folder.

    Raises:
        UserError: when the folder lacks what is compared: finished runs of fkl and rkl with metrics of `part`.
    """
    found = read_runs(Path(runs or ""), part=part)
    advance = begin(3)
    claims = (*order_claims(found, windows), *pace_claims(found, windows), *akl_claims(found))
    advance()
    tables = {"curves": _curves_table(found), "leads": _leads_table(found, windows)}
    advance()
    pictures = tuple(filter(None, (_gaps_picture(found), _paths_picture(found), _divergences_picture(found))))
    advance()
    return Findings(claims, tables, pictures)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(folder: Path, *, part: str) -> list[Run]:
    """The finished distillations below a folder, in the order of their losses' first appearance."""
    configs = [(run, run.config()) for run in find_runs(folder) if run.record.get("status") == "done"]
    configs = [(run, config) for run, config in configs if config.get("role") == "student"]
    for run, config in configs:
        if not isinstance(config.get("loss"), dict) or "name" not in config["loss"] or "seed" not in config:
            raise UserError(f"{run.path / 'config.yaml'}: names no loss or no seed, so it is not that of a training")
    defaults = {name: _params(config) for _, config in reversed(configs) for name in [config["loss"]["name"]]}
    found = []
    for run, config in configs:
        curves = {name: dict(points) for name in MEASURES if (points := read_curves(run.path).get(f"{part}/{name}"))}
        name, params = config["loss"]["name"], _params(config)
        if "head_gap" not in curves:  # loss=sft without a teacher
            continue
        steps = sorted(curves["head_gap"])
        differing = {key: value for key, value in params.items() if value != defaults[name][key]}
        (contender,) = contenders([{"name": name, **differing}])
        arrays = {key: np.array([values[step] for step in steps]) for key, values in curves.items()}
        found.append(Run(contender.label, name, config["seed"], np.array(steps), arrays))
    missing = {"fkl", "rkl"} - {run.loss for run in found}
    if missing:
        names = ", ".join(sorted({run.loss for run in found})) or "no finished distillation"
        raise UserError(
            f"study.runs={folder}: the claims compare loss=fkl with loss=rkl, and of those with {part}/head_gap there "
            f"is no {' and no '.join(sorted(missing))} ({names}); kdrun sweep experiment=headtail makes such runs"
        )
    short = min(found, key=lambda run: len(run.steps))
    if len(short.steps) < 5:
        raise UserError(
            f"study.runs={folder}: {len(short.steps)} points of {part}/head_gap are too few for a curve; "
            "train with a smaller train.valid_every, or type study.part=train"
        )
    return found


def _params(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config["loss"].items() if key not in OBJECTIVE}


def labels(runs: Sequence[Run]) -> list[str]:
    """The labels, each once."""
    return list(dict.fromkeys(run.label for run in runs))


# -- claims ------------------------------------------------------------------------------------------------------------


def over(run: Run, values: np.ndarray, window: float) -> float:
    """The mean of values over the measured steps in (0, window * last step]."""
    inside = (run.steps > run.steps[0]) & (run.steps <= max(window * run.steps[-1], run.steps[1]))
    return float(values[inside].mean())


def judge(means: dict[float, Mean]) -> tuple[Verdict, str]:
    """A verdict on "above zero" from one mean a window: holds in all, in some, in none."""
    yes = [window for window, mean in means.items() if mean.sign > 0]
    if len(yes) == len(means):
        return "holds", ""
    if yes:
        shares = " or ".join(f"{window:.0%}" for window in yes)
        return "holds only when", f"the first {shares} of the steps are meant"
    return ("contradicted" if any(mean.sign < 0 for mean in means.values()) else "doubtful"), ""


def order_claims(runs: Sequence[Run], windows: Sequence[float]) -> list[Claim]:
    """Within one loss: FKL's head is ahead of its tail, RKL's tail ahead of its head."""
    claims = []
    for loss, first, second, sign in (("fkl", "head", "tail", 1), ("rkl", "tail", "head", -1)):
        own = [run for run in runs if run.loss == loss]
        means = {w: mean_over_seeds([sign * over(run, run.lead, w) for run in own]) for w in windows}
        claims.append(
            Claim(
                f"{loss}_{first}_first", f"{loss.upper()} closes the {first}'s gap first.", PAPER,
                f"the {second}'s gap minus the {first}'s, each as a share of its start, mean over the first steps: "
                f"{_spelled(means)}", _rule(own), *judge(means),
            )
        )  # fmt: skip
    return claims


def pace_claims(runs: Sequence[Run], windows: Sequence[float]) -> list[Claim]:
    """Between losses from the same start: FKL is faster on the head, RKL on the tail."""
    claims = []
    for part, fast, slow in (("head", "fkl", "rkl"), ("tail", "rkl", "fkl")):
        pairs = paired(runs, slow, fast)
        gap = f"{part}_gap"
        means = {
            w: mean_over_seeds([over(a, a.curves[gap], w) - over(b, b.curves[gap], w) for a, b in pairs])
            for w in windows
        }
        claims.append(
            Claim(
                f"{fast}_faster_on_{part}", f"{fast.upper()} closes the {part}'s gap faster than {slow.upper()}.",
                PAPER,
                f"{slow.upper()}'s {part} gap minus {fast.upper()}'s, mean over the first steps: {_spelled(means)}",
                _rule(pairs), *judge(means),
            )
        )  # fmt: skip
    return claims


def akl_claims(runs: Sequence[Run]) -> list[Claim]:
    """AKL against the losses that it weighs, over all steps; nothing when it was not run."""
    claims = []
    for other, statement in (
        ("fkl", "AKL closes the whole gap faster than FKL."),
        ("rkl", "AKL closes the whole gap faster than RKL."),
        ("fkl_rkl", "AKL's weights close the whole gap faster than fixed halves (FKL+RKL)."),
    ):
        pairs = paired(runs, other, "akl")
        if not pairs:
            continue
        mean = mean_over_seeds([over(a, a.total, 1.0) - over(b, b.total, 1.0) for a, b in pairs])
        weights = np.concatenate([ours.curves["akl_weight"] for _, ours in pairs])
        claims.append(
            Claim(
                f"akl_faster_than_{other}", statement, "Wu et al. 2404.02657, sections 3 and 4",
                f"{contenders([other])[0].label}'s sum of |p - q| minus AKL's, mean over all steps: {mean}; "
                f"AKL's mean weight between {weights.min():.2f} and {weights.max():.2f}",
                _rule(pairs), *judge({1.0: mean}),
            )
        )  # fmt: skip
    return claims


def paired(runs: Sequence[Run], first: str, second: str) -> list[tuple[Run, Run]]:
    """The runs of two losses that share a seed, hence start, rows and order."""
    one, two = ({run.seed: run for run in reversed(runs) if run.loss == loss} for loss in (first, second))
    return [(one[seed], two[seed]) for seed in one if seed in two]


def _spelled(means: dict[float, Mean]) -> str:
    return ", ".join(f"{window:.0%}: {mean}" for window, mean in means.items())


def _rule(samples: Sequence[Any]) -> str:
    seeds = f"{len(samples)} seed" + ("s" if len(samples) != 1 else ", so that nothing can be shown")
    return f"above zero, by Student's 95 % interval over {seeds}"


# -- tables and pictures -----------------------------------------------------------------------------------------------


def _curves_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {"run": run.label, "seed": run.seed, "step": int(step)}
        | {name: float(run.curves[name][i]) if name in run.curves else "" for name in MEASURES}
        for run in runs
        for i, step in enumerate(run.steps)
    ]


def _leads_table(runs: Sequence[Run], windows: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "run": run.label, "seed": run.seed, "first_share_of_steps": window,
            "lead_of_head": over(run, run.lead, window),
            **{f"mean_{name}": over(run, run.curves[name], window) for name in ("head_gap", "tail_gap", "akl_weight")},
        }
        for run in runs
        for window in windows
    ]  # fmt: skip


def _bands(runs: Sequence[Run], values: Callable[[Run], np.ndarray]) -> list[Curve]:
    """A curve a label: the mean over seeds at the steps that all have, the band from the least to the greatest."""
    curves = []
    for look, label in enumerate(labels(runs)):
        own = [run for run in runs if run.label == label]
        steps = sorted(set.intersection(*(set(run.steps.tolist()) for run in own)))
        stacked = np.stack([values(run)[np.isin(run.steps, steps)] for run in own])
        band = (stacked.min(0).tolist(), stacked.max(0).tolist()) if len(own) > 1 else None
        curves.append(Curve(label, steps, stacked.mean(0).tolist(), look, band=band))
    return curves


def _panel(runs: Sequence[Run], name: str, title: str) -> Panel:
    having = [run for run in runs if name in run.curves]
    return Panel(title, "optimiser steps", MEASURES[name], _bands(having, lambda run: run.curves[name]))


def _gaps_picture(runs: Sequence[Run]) -> Picture:
    lead = Panel(
        "Lead of the head (above 0: head first)", "optimiser steps", "share of the start's gap",
        _bands(runs, lambda run: run.lead), levels=[("", 0.0)],
    )  # fmt: skip
    panels = (
        _panel(runs, "head_gap", "Gap on the teacher's head"), _panel(runs, "tail_gap", "Gap on the teacher's tail"),
        lead, _panel(runs, "akl_weight", "AKL's weight of FKL"),
    )  # fmt: skip
    return Picture("gaps", f"Head and tail gaps in training: {_seeds(runs)}", panels)


def _paths_picture(runs: Sequence[Run]) -> Picture:
    """Relative head gap against relative tail gap: below the diagonal the head is ahead."""
    curves = []
    for look, label in enumerate(labels(runs)):
        own = [run for run in runs if run.label == label]
        for run in own:
            tail, head = (run.curves[name] / run.curves[name][0] for name in ("tail_gap", "head_gap"))
            curves.append(Curve(label if run is own[0] else "", tail.tolist(), head.tolist(), look))
    low = min(min(curve.x) for curve in curves), min(min(curve.y) for curve in curves)
    diagonal = Curve("head and tail alike", [min(low), 1], [min(low), 1])
    axes = ("tail gap (share of its start)", "head gap (share of its start)")
    panel = Panel("Below the line the head is ahead", *axes, [diagonal, *curves])
    return Picture("paths", "The way from the start (top right): a line a seed", [panel], columns=1)


def _divergences_picture(runs: Sequence[Run]) -> Picture | None:
    titles = {
        "fkl": "FKL", "rkl": "RKL", "jsd": "JSD", "tvd": "TVD", "top1_agreement": "Top-1 agreement",
        "student_entropy": "Entropy",
    }  # fmt: skip
    panels = [_panel(runs, name, title) for name, title in titles.items() if name in runs[0].curves]
    if {"teacher_entropy", "student_entropy"} <= set(runs[0].curves):
        panels[-1] = replace(panels[-1], levels=(("teacher", float(runs[0].curves["teacher_entropy"].mean())),))
    if not panels:
        return None
    return Picture("divergences", f"What each loss does to the others: {_seeds(runs)}", panels, columns=3)


def _seeds(runs: Sequence[Run]) -> str:
    count = len({run.seed for run in runs})
    return f"mean and range of {count} seeds" if count > 1 else "one seed"
