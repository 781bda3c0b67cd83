"""What the Gaussians' ends say of the blog's statements: rows of the tables, and claims made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress, groupby, pairwise
from typing import Any, TypeVar

from kdrun.studies.findings import Claim, Verdict, holds, holds_in

BLOG = "the blog on forward and reverse KL"
STILL = 1e-6  # nats per unit: norm of a gradient that counts as rest


@dataclass(frozen=True)
class End:
    """Where one Gaussian ended. gradient, curvature: see `stillness`. state: see `state_of`."""

    loss: str
    start_sigma: float
    start_mean: float
    mean: float
    sigma: float
    nats: float
    gradient: float
    curvature: float
    state: str


@dataclass(frozen=True)
class Pair:
    """Where two Gaussians ended, started at -half_gap and half_gap. steps: until TV was below the threshold, or inf."""

    loss: str
    start_sigma: float
    start_half_gap: float
    tvd: float
    steps: float

    def row(self, near: float) -> dict[str, Any]:
        """A row of the table."""
        row = asdict(self)
        return {**row, f"steps_to_tvd_{near:g}": row.pop("steps")}


@dataclass(frozen=True)
class Separation:
    """Reverse KL's two places for a teacher with modes so many sigmas apart. on_mode: the second's mean, in sigmas."""

    distance: float
    nats_over_both: float
    nats_on_mode: float
    on_mode: float
    gradient_over_both: float
    curvature_over_both: float

    @property
    def two_places(self) -> bool:
        """Whether the fit that started on a mode stayed away from the centre."""
        return self.on_mode > 0.1


Row = TypeVar("Row", End, Pair)


def mode_claims(ends: Sequence[End], teacher_means: Sequence[float], teacher_sigma: float) -> list[Claim]:
    """Forward KL covers both modes; reverse KL takes one."""
    forward, reverse = _of_loss(ends, "FKL"), _of_loss(ends, "RKL")
    left, right = teacher_means
    mean, sigma = (left + right) / 2, (teacher_sigma**2 + (right - left) ** 2 / 4) ** 0.5
    covers = [end.state == "both modes" for end in forward]
    best = min(forward, key=lambda end: end.nats)
    arrived = sum(abs(end.mean - best.mean) < 0.01 and abs(end.sigma - best.sigma) < 0.01 for end in forward)
    alone = [end.state in ("left mode", "right mode") for end in reverse]
    lone = list(compress(reverse, alone))
    counts = Counter(end.state for end in reverse)
    nearest = sum(
        (end.state == "left mode") == (abs(end.start_mean - left) < abs(end.start_mean - right)) for end in lone
    )
    return [
        Claim(
            "forward_covers", "Under forward KL one Gaussian spreads over both modes, wherever it starts.", BLOG,
            f"{sum(covers)} of {len(forward)} starts end over both modes; "
            f"{arrived} within .01 of mean {best.mean:.2f}, sigma {best.sigma:.2f}, the others still on their way "
            f"(the teacher's own moments: {mean:.2f}, {sigma:.2f})",
            "both modes within 2 sigmas of the student's mean, from every start",
            *_over_starts(forward, covers, "start_mean"),
        ),
        Claim(
            "reverse_seeks", "Under reverse KL one Gaussian settles on one of the two modes.", BLOG,
            f"of {len(reverse)} starts {counts['left mode']} end on the left mode, {counts['right mode']} on the "
            f"right, {counts['both modes']} over both; {nearest} of {len(lone)} on the mode nearer to their start",
            "one mode only within 2 sigmas of the student's mean, from every start",
            *_over_starts(reverse, alone, "start_mean"),
        ),
    ]  # fmt: skip


def covering_claim(ends: Sequence[End]) -> Claim:
    """Over both modes reverse KL is not at rest: judged by gradient and curvature at the stillest such end."""
    reverse = _of_loss(ends, "RKL")
    over = [end for end in reverse if end.state == "both modes"]
    verdict: Verdict = "holds"
    measured = "no start ends over both modes"
    if over:
        stillest = min(over, key=lambda end: end.gradient)
        verdict = holds(stillest.curvature <= 0) if stillest.gradient < STILL else "doubtful"
        lone = [end.nats for end in reverse if end.state != "both modes"]
        beside = f", against {min(lone):.4f} on a mode" if lone else ""
        measured = (
            f"at mean {stillest.mean:.2f}, sigma {stillest.sigma:.2f} the gradient's norm is {stillest.gradient:.1e} "
            f"and the least curvature {stillest.curvature:+.3f} (mean, log sigma); {stillest.nats:.4f} nats{beside}"
        )
    return Claim(
        "only_modes_rest", "Over both modes a student is not at rest under reverse KL: in time it leaves for one.",
        f"{BLOG}, read strictly", measured,
        f"contradicted by a local minimum over both modes: gradient below {STILL:g}, least curvature above 0; "
        "doubtful where the gradient is larger",
        verdict,
    )  # fmt: skip


def distance_claim(separations: Sequence[Separation], distance: float) -> Claim:
    """The best Gaussian under reverse KL sits on a mode: from which distance of the modes on."""
    apart = [each for each in separations if each.two_places]
    better = [each for each in apart if each.nats_on_mode < each.nats_over_both]
    minima = [each for each in separations if each.gradient_over_both < STILL and each.curvature_over_both > 0]
    where = ""
    measured = f"over both modes it has a local minimum at {len(minima)} of the {len(separations)} distances; "
    if len(better) in (0, len(separations)):
        measured += f"the mode is {'everywhere' if better else 'nowhere'} the better place"
    else:
        turn = turning_distance(separations)
        where = f"the modes are more than {turn:.1f} of their sigmas apart"
        measured += (
            f"on a mode it has one from {apart[0].distance:g} sigmas on, the better place from {turn:.2f}; "
            f"this teacher's modes are {distance:.2f} apart"
        )
    return Claim(
        "mode_is_best", "The Gaussian with the least reverse KL sits on one mode.", BLOG, measured,
        f"nats at the two ends, started over both modes and on one; distances {separations[0].distance:g} to "
        f"{separations[-1].distance:g} sigmas",
        *holds_in(len(better), len(separations), where=where),
    )  # fmt: skip


def turning_distance(separations: Sequence[Separation]) -> float:
    """The distance, between two neighbours, where the mode becomes the better place; the first one if it always is."""
    ahead = [(each.distance, each.nats_over_both - each.nats_on_mode) for each in separations if each.two_places]
    for (near, loss), (far, gain) in pairwise(ahead):
        if loss <= 0 < gain:
            return near + (far - near) * -loss / (gain - loss)
    return ahead[0][0]


def pair_claims(pairs: Sequence[Pair], near: float) -> list[Claim]:
    """Two Gaussians fit under both losses; forward KL arrives first."""
    forward, reverse = _of_loss(pairs, "FKL"), _of_loss(pairs, "RKL")
    rivals = list(zip(forward, reverse, strict=True))
    fit = [max(one.tvd, other.tvd) < near for one, other in rivals]
    first = [one.steps < other.steps for one, other in rivals]
    ratios = [one.steps / other.steps for one, other in rivals]  # nan, where neither arrives, comes last
    extremes = sorted(range(len(ratios)), key=lambda i: (ratios[i] != ratios[i], ratios[i]))
    fastest, slowest = (
        f"{one.steps:g} and {other.steps:g} steps from +-{one.start_half_gap:g}, sigma {one.start_sigma:g}"
        for one, other in (rivals[extremes[0]], rivals[extremes[-1]])
    )
    return [
        Claim(
            "two_fit", "Two Gaussians fit the two modes under either loss.", BLOG,
            f"largest total variation at the end: FKL {max(pair.tvd for pair in forward):.4f}, "
            f"RKL {max(pair.tvd for pair in reverse):.4f}, over {len(forward)} starts",
            f"total variation below {near:g} from every start", *_over_starts(forward, fit, "start_half_gap"),
        ),
        Claim(
            "forward_first", "With two Gaussians forward KL arrives before reverse KL.", BLOG,
            f"FKL first from {sum(first)} of {len(first)} starts; FKL and RKL take {fastest}, {slowest}",
            f"fewer steps until the total variation is below {near:g}, from every start",
            *_over_starts(forward, first, "start_half_gap"),
        ),
    ]  # fmt: skip


def _of_loss(rows: Sequence[Row], label: str) -> list[Row]:
    return [row for row in rows if row.loss == label]


def _over_starts(rows: Sequence[End | Pair], good: Sequence[bool], place: str) -> tuple[Verdict, str]:
    """The verdict of a statement about every start, and of which it is true; place: the starts' field beside sigma."""
    places, never = [], []
    for sigma, members in groupby(zip(rows, good, strict=True), key=lambda pair: pair[0].start_sigma):
        runs = [[getattr(row, place) for row, _ in run] for fine, run in groupby(members, lambda pair: pair[1]) if fine]
        spans = " or ".join(f"{run[0]:g}" if len(run) == 1 else f"{run[0]:g} to {run[-1]:g}" for run in runs)
        if spans:
            places.append(f"{spans} at sigma {sigma:g}")
        else:
            never.append(f"{sigma:g}")
    missing = f" (never at sigma {', '.join(never)})" if never else ""
    name = place.removeprefix("start_").replace("_", " ")
    return holds_in(sum(good), len(good), where=f"the start's {name} is {', '.join(places)}{missing}")
