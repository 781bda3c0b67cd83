"""Where the head of a distribution ends, exactly and without a sort: a search for a threshold, then a short walk.

Shapes: N scored tokens, V vocabulary. Above(t) is the mass of the entries greater than t; one pass over [N, V] gives it
for one threshold a row. Sorting 256 x 50257 entries takes 0.95 s on one core, the search in torch 0.03 to 0.06 s, in
native/head_border.c 0.01 s.
"""

import math
from ctypes import CDLL, c_double, c_ssize_t
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdrun.native import compiled, pointer

WALK = 64  # entries that one step of the walk looks at; more cost more at every token, fewer take more steps
GROUP = 64  # neighbours of which only the largest is looked at first, see `_largest`
MAX_PASSES = 6  # between two steps of the walk; 1 is enough for a peaked row, 3 to 5 for a flat one
TINY = 1e-37  # no threshold is below it: logarithms of thresholds stay finite


def head_border(p_NV: Tensor, *, mu: float, reaches: bool) -> tuple[Tensor, Tensor]:
    """(border_N1, share_N1): head is what is above the border, and that share in [0, 1) of each entry equal to it.

    The head is the longest prefix of the sorted row whose mass is at most mu, but always the top entry; if reaches, the
    shortest whose mass is at least mu. mu in (0, 1). p_NV: non-negative, rows of mass 1 or less. No gradient.
    """
    p_NV = p_NV.detach()
    if p_NV.numel() == 0:
        return p_NV.new_zeros(len(p_NV), 1), p_NV.new_zeros(len(p_NV), 1)
    if (library := compiled_for(p_NV)) is not None:
        border_N1, share_N1 = p_NV.new_empty(len(p_NV), 1), p_NV.new_empty(len(p_NV), 1)
        library.head_borders(
            pointer(p_NV), *sizes(p_NV), c_double(mu), int(reaches), pointer(border_N1), pointer(share_N1),
            torch.get_num_threads(),
        )  # fmt: skip
        return border_N1, share_N1
    return _border_in_torch(p_NV, mu, reaches)


def compiled_for(p_NV: Tensor) -> CDLL | None:
    """native/head_border.c, for rows that it takes: contiguous float32 on the CPU. For others, None."""
    fits = p_NV.device.type == "cpu" and p_NV.dtype is torch.float32 and p_NV.is_contiguous() and p_NV.numel() > 0
    return compiled("head_border") if fits else None


def sizes(p_NV: Tensor) -> tuple[c_ssize_t, c_ssize_t]:
    """Rows and entries a row, as C wants them."""
    return c_ssize_t(p_NV.shape[0]), c_ssize_t(p_NV.shape[1])


# -- in torch: any device, any dtype ----------------------------------------------------------------------------------


def _border_in_torch(p_NV: Tensor, mu: float, reaches: bool) -> tuple[Tensor, Tensor]:
    crossing_N, above_N = _crossing(p_NV, mu, reaches)
    room_N = (mu - above_N) / crossing_N.clamp(min=torch.finfo(p_NV.dtype).tiny)
    if reaches:
        places_N = room_N.ceil().clamp(min=1)
    else:
        places_N = torch.where(above_N == 0, room_N.floor().clamp(min=1), room_N.floor())
    share_N = torch.zeros_like(crossing_N)
    if places_N.any():
        tied_N = torch.eq(p_NV, crossing_N[:, None], out=torch.empty_like(p_NV)).sum(-1)
        share_N = (places_N / tied_N).clamp(0, 1).to(p_NV.dtype)
    all_of_them_N = share_N == 1  # then the border is just below them
    border_N = torch.where(all_of_them_N, torch.nextafter(crossing_N, crossing_N - 1), crossing_N)
    return border_N[:, None], share_N.masked_fill(all_of_them_N, 0)[:, None]


def _crossing(p_NV: Tensor, mu: float, reaches: bool) -> tuple[Tensor, Tensor]:
    """(value_N, above_N): the entry at which the mass crosses mu, and the mass of what is greater (float64).

    -1 where the whole row stays within mu, which happens where impossible entries were dropped.
    """
    total_N, top_N = _mass(p_NV), p_NV.amax(-1)
    value_N, above_N = torch.full_like(top_N, -1), total_N.clone()
    brackets = [
        _Bracket(mu, low=(total - mu) / p_NV.shape[-1], high=top)
        for total, top in zip(total_N.tolist(), top_N.tolist(), strict=True)
    ]
    rows = ((total_N >= mu) if reaches else (total_N > mu)).nonzero()[:, 0]
    while len(rows):
        left_NV = p_NV if len(rows) == len(p_NV) else p_NV.index_select(0, rows)
        left_brackets = [brackets[row] for row in rows.tolist()]
        start_N1, above_N1 = _search(left_NV, left_brackets)
        largest_Nk = _largest(torch.le(left_NV, start_N1, out=torch.empty_like(left_NV)).mul_(left_NV), WALK)
        mass_Nk = above_N1 + largest_Nk.double().cumsum(-1)
        within_N1 = ((mass_Nk < mu) if reaches else (mass_Nk <= mu)).sum(-1, keepdim=True)
        crossing_N1 = largest_Nk.gather(-1, within_N1.clamp(max=largest_Nk.shape[-1] - 1))
        value_N[rows] = crossing_N1[:, 0]
        above_N[rows] = above_N1[:, 0] + (largest_Nk * (largest_Nk > crossing_N1)).sum(-1, dtype=torch.float64)
        rest = (within_N1[:, 0] == largest_Nk.shape[-1]).nonzero()[:, 0]
        if len(rest) == 0:
            break
        # the last one seen may be tied with many unseen: does the mass cross mu with all of them?
        below_N1 = torch.nextafter(crossing_N1[rest], crossing_N1[rest] - 1)
        mass_N = _mass_above(left_NV.index_select(0, rest), below_N1)
        goes_on_N = (mass_N < mu) if reaches else (mass_N <= mu)
        for row, threshold, mass in zip(rest.tolist(), below_N1[:, 0].tolist(), mass_N.tolist(), strict=True):
            left_brackets[row].add(threshold, mass)
        rows = rows[rest[goes_on_N]]
    return value_N, above_N


def _largest(p_NV: Tensor, k: int) -> Tensor:
    """The k largest of each row (all, if there are fewer) in descending order.

    The k largest stand in the k groups with the largest maxima: 0.45 ns an entry, topk over the row 1.4.
    """
    num_groups = p_NV.shape[-1] // GROUP
    if num_groups < 2 * k:
        return p_NV.topk(min(k, p_NV.shape[-1]), dim=-1).values
    groups_NGg = p_NV[:, : num_groups * GROUP].unflatten(-1, (num_groups, GROUP))
    best_Nk = groups_NGg.amax(-1).topk(k, dim=-1, sorted=False).indices
    few_Nx = groups_NGg[torch.arange(len(p_NV), device=p_NV.device)[:, None], best_Nk].flatten(1)
    return torch.cat([few_Nx, p_NV[:, num_groups * GROUP :]], dim=-1).topk(k, dim=-1).values


def _mass_above(p_NV: Tensor, threshold_N1: Tensor) -> Tensor:
    """Mass of the entries greater than the threshold, float64: 0.25 ns an entry."""
    return _mass(torch.gt(p_NV, threshold_N1, out=torch.empty_like(p_NV)).mul_(p_NV))


def _mass(p_NV: Tensor) -> Tensor:
    """Sum of each row; torch sums float32 in a cascade, 1e-7 from the float64 sum that costs 5 times as much."""
    return p_NV.sum(-1).double()


def _search(p_NV: Tensor, brackets: list["_Bracket"]) -> tuple[Tensor, Tensor]:
    """(threshold_N1, above_N1): thresholds not below the crossing entries, mostly so near that a walk gets there.

    The numbers of a row are Python's: 30 operations on vectors of N would cost more than the pass over [N, V].
    """
    for _ in range(MAX_PASSES):
        if all(x.near() for x in brackets):
            break
        threshold_N = torch.tensor([x.next_threshold() for x in brackets], dtype=p_NV.dtype, device=p_NV.device)
        above_N = _mass_above(p_NV, threshold_N[:, None])
        for bracket, threshold, above in zip(brackets, threshold_N.tolist(), above_N.tolist(), strict=True):
            bracket.add(threshold, above)
    high_N1 = torch.tensor([[x.high] for x in brackets], dtype=p_NV.dtype, device=p_NV.device)
    return high_N1, torch.tensor([[x.above_high] for x in brackets], dtype=torch.float64, device=p_NV.device)


@dataclass
class _Bracket:
    """Thresholds of one row, above(low) > mu > above(high), and the thresholds tried."""

    mu: float
    low: float  # at first (total - mu) / V: what is below weighs less than total - mu
    high: float
    above_high: float = 0.0
    tried: list[tuple[float, float]] = field(default_factory=list)  # (log threshold, log odds of mass above)

    def __post_init__(self) -> None:
        self.low, self.high = max(self.low, TINY), max(self.high, TINY)
        self.tried = [(math.log(self.low), _log_odds(1.0)), (math.log(self.high), _log_odds(0.0))]

    def near(self) -> bool:
        """Whether a walk of WALK entries reaches mu: each is at least low until it does."""
        return self.mu - self.above_high < (WALK - 1) * self.low

    def next_threshold(self) -> float:
        """Where to look next: the secant through the last two, in log threshold and log odds of the mass.

        With normal logits that curve is nearly straight. The goal is a little less than mu, as `high` must stay above.
        """
        missing = self.mu - self.above_high
        if self.near():
            return self.high
        if missing < WALK / 2 * self.high:
            return missing / (WALK - 1)  # as `low` it would end the search
        (x1, z1), (x2, z2) = self.tried[-2:]
        goal = _log_odds(self.mu - 0.3 * WALK * self.low)
        if z1 != z2 and len(self.tried) % 4:
            x = x2 + (goal - z2) * (x1 - x2) / (z1 - z2)
            if math.log(self.low) < x < math.log(self.high):
                return math.exp(x)
        return math.sqrt(self.low * self.high)

    def add(self, threshold: float, above: float) -> None:
        """Takes in that above(threshold) = above."""
        if above < self.mu:
            if threshold < self.high:
                self.high, self.above_high = threshold, above
        elif threshold > self.low:
            self.low = threshold
        self.tried.append((math.log(max(threshold, TINY)), _log_odds(above)))


def _log_odds(mass: float) -> float:
    """log(mass / (1 - mass)); 0 and 1 are taken for 1e-4 and 1 - 1e-4."""
    mass = min(max(mass, 1e-4), 1 - 1e-4)
    return math.log(mass / (1 - mass))
