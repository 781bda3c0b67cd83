"""The statements that have a proof, each as a measurement on pairs: two sides, left <= right.

Shapes: N pairs, V classes. p teacher, q student, f = log(q/p), R = KL(q || p), g = q (f - R), a AKL's weight of
KL(p || q). Gradients are in the student's logits. Zhong 2025 is read through the reconstruction of its lemmas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kdrun.losses import Loss, make_loss
from kdrun.losses.akl import Akl
from kdrun.losses.head import HEAD_RULES, head_and_tail_gaps, head_share, head_weight
from kdrun.losses.interface import log_softmax, nats_and_gradient
from kdrun.studies.theory.pairs import Pairs

ZHONG, AKL_PAPER = "Zhong 2025", "AKL paper"
MUS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
NEARLY_0, NEARLY_1 = 1e-9, 1 - 1e-9
LEAST_CLASS = 1e-7  # a teacher whose least class is below this has more than one class outside a head of NEARLY_1
STATIONARY = ("fkl", "rkl", "akl", "jsd")


@dataclass(frozen=True)
class Statement:
    """A proven statement. `sides(pairs)`: (left_M, right_M), M measurements, where the statement is left <= right.

    identity: left is the size of an error and right is 0. strict: left < right, and no tolerance. ratio: how near left
    comes to right is worth telling. unit: that of both sides.
    """

    key: str
    says: str
    source: str
    sides: Callable[[Pairs], tuple[Tensor, Tensor]]
    identity: bool = False
    strict: bool = False
    ratio: bool = False
    unit: str = "nats"


def gradient_by_autograd(loss: Loss, pairs: Pairs) -> Tensor:
    """The gradient_NV of each pair's value, by automatic differentiation of the value alone."""
    logits_NV = pairs.student_logits_NV.clone().requires_grad_()
    nats_N = loss.from_log_probs(log_softmax(logits_NV), pairs.log_p_NV, None)
    return torch.autograd.grad(nats_N.sum(), logits_NV)[0]


def gradient_in_training(loss: Loss, pairs: Pairs) -> Tensor:
    """The gradient_NV that kdrun trains with."""
    return nats_and_gradient(loss, pairs.log_q_NV.clone(), pairs.log_p_NV.clone(), None)[1]


def forward_gradient(pairs: Pairs) -> Tensor:
    """q - p (Zhong 2025, Definition 2.1)."""
    return pairs.q_NV - pairs.p_NV


def reverse_gradient(pairs: Pairs) -> Tensor:
    """g = q (log(q/p) - KL(q || p)) (Zhong 2025, Definition 2.2)."""
    return _centred(pairs.log_ratio_NV, pairs)


def adaptive_gradient(pairs: Pairs) -> Tensor:
    """a (q - p) + (1 - a) g, a a constant (Zhong 2025, Definition 2.3)."""
    weight_N1 = pairs.diagnostics["akl_weight"][:, None]
    return weight_N1 * forward_gradient(pairs) + (1 - weight_N1) * reverse_gradient(pairs)


def shannon_gradient(pairs: Pairs, *, beta: float) -> Tensor:
    """(1 - beta) q (log(q/m) - KL(q || m)), m = beta p + (1 - beta) q (Zhong 2025, Lemma 3.1, for any beta)."""
    mixture_NV = torch.lerp(pairs.q_NV, pairs.p_NV, beta)
    # q log(q/m) is 0 where q underflows; m may underflow with it
    ratio_NV = torch.where(pairs.q_NV > 0, pairs.log_q_NV - mixture_NV.log(), 0.0)
    return (1 - beta) * _centred(ratio_NV, pairs)


def _centred(ratio_NV: Tensor, pairs: Pairs) -> Tensor:
    """q (ratio - E_q ratio)."""
    return pairs.q_NV * (ratio_NV - (pairs.q_NV * ratio_NV).sum(-1, keepdim=True))


def _error(*sizes: Tensor) -> tuple[Tensor, Tensor]:
    """An identity's two sides from its errors: the largest of each pair, and 0."""
    error_N = torch.stack([size.abs().flatten(1).amax(-1) if size.ndim > 1 else size.abs() for size in sizes]).amax(0)
    return error_N, torch.zeros_like(error_N)


def gradients_agree(closed_form: Callable[[Pairs], Tensor], loss: Loss) -> Callable[[Pairs], tuple[Tensor, Tensor]]:
    """The sides of an identity: a gradient written out, by autograd, and in training are the same."""

    def sides(pairs: Pairs) -> tuple[Tensor, Tensor]:
        ours_NV, by_autograd_NV = gradient_in_training(loss, pairs), gradient_by_autograd(loss, pairs)
        closed_NV = closed_form(pairs)
        return _error(closed_NV - by_autograd_NV, ours_NV - closed_NV, ours_NV - by_autograd_NV)

    return sides


def _generalised_gradients_agree(pairs: Pairs) -> tuple[Tensor, Tensor]:
    forms = {beta: partial(shannon_gradient, beta=beta) for beta in (0.1, 0.9)}
    return _error(*(gradients_agree(form, make_loss("jsd", beta=beta))(pairs)[0] for beta, form in forms.items()))


def _stationary_at_teacher(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """At q = p; the student's logits are the teacher's plus 1, which softmax does not see."""
    equal = Pairs(pairs.kind, pairs.teacher_logits_NV + 1, pairs.teacher_logits_NV)
    return _error(*(gradient_in_training(make_loss(name), equal) for name in STATIONARY))


def _stationary_nowhere_else(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """0 < grad . log(q/p), the least over the losses.

    It is KL(p || q) + KL(q || p) for FKL, the variance of log(q/p) under q for RKL, a mix of the two for AKL, and for
    JSD the covariance of log(q/p) with log(q/m), which rises with it.
    """
    slopes = [(gradient_in_training(make_loss(name), pairs) * pairs.log_ratio_NV).sum(-1) for name in STATIONARY]
    right_N = torch.stack(slopes).amin(0)
    return torch.zeros_like(right_N), right_N


def signed_gaps(pairs: Pairs, *, mu: float = 0.5) -> tuple[Tensor, Tensor]:
    """(D_H, D_T) per pair: the sums of q - p over AKL's head (rule `code`) and over the tail."""
    difference_NV = forward_gradient(pairs)
    share_NV = head_share(pairs.p_NV, mu=mu)
    return (share_NV * difference_NV).sum(-1), ((1 - share_NV) * difference_NV).sum(-1)


def _signed_gaps_cancel(pairs: Pairs) -> tuple[Tensor, Tensor]:
    head_N, tail_N = signed_gaps(pairs)
    return _error(head_N + tail_N)


def _half_the_total_gap(pairs: Pairs) -> tuple[Tensor, Tensor]:
    difference_NV = forward_gradient(pairs)
    half_N = sum(head_and_tail_gaps(pairs.p_NV, pairs.q_NV, mu=0.5)) / 2
    over_N, under_N = difference_NV.clamp(min=0).sum(-1), -difference_NV.clamp(max=0).sum(-1)
    return _error(over_N - half_N, under_N - half_N, pairs.value("tvd") - half_N)


def forward_bound(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(norm of FKL's gradient, total gap) per pair (Zhong 2025, Lemma 4.4)."""
    return gradient_in_training(make_loss("fkl"), pairs).norm(dim=-1), forward_gradient(pairs).abs().sum(-1)


def reverse_bound(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(norm of RKL's gradient, sum of abs(g)) per pair (Zhong 2025, Lemma 4.7)."""
    return gradient_in_training(make_loss("rkl"), pairs).norm(dim=-1), reverse_gradient(pairs).abs().sum(-1)


def _reverse_gap_bound(pairs: Pairs) -> tuple[Tensor, Tensor]:
    spread_N = (pairs.q_NV * pairs.log_ratio_NV.abs()).sum(-1)
    return reverse_gradient(pairs).abs().sum(-1), spread_N + pairs.diagnostics["rkl"]


def over_rated(pairs: Pairs) -> Tensor:
    """flag_NV: log(q/p) > KL(q || p), the classes that RKL's gradient lowers (Zhong 2025, Lemma 4.8)."""
    return pairs.log_ratio_NV > pairs.diagnostics["rkl"][:, None]


def _reverse_gap_is_twice_the_over_rated(pairs: Pairs) -> tuple[Tensor, Tensor]:
    gap_NV = reverse_gradient(pairs)
    return _error(gap_NV.abs().sum(-1) - 2 * (gap_NV * over_rated(pairs)).sum(-1))


def _adaptive_value_is_the_mix(pairs: Pairs) -> tuple[Tensor, Tensor]:
    forward_N, reverse_N, weight_N = (pairs.diagnostics[name] for name in ("fkl", "rkl", "akl_weight"))
    return _error(pairs.value("akl") - (weight_N * forward_N + (1 - weight_N) * reverse_N))


def _adaptive_value_is_between(pairs: Pairs) -> tuple[Tensor, Tensor]:
    forward_N, reverse_N, weight_N = (pairs.diagnostics[name] for name in ("fkl", "rkl", "akl_weight"))
    low_N, high_N = torch.minimum(forward_N, reverse_N), torch.maximum(forward_N, reverse_N)
    value_N = pairs.value("akl")
    zero_N = torch.zeros_like(value_N)
    return torch.cat([low_N, value_N, zero_N, weight_N]), torch.cat([value_N, high_N, weight_N, zero_N + 1])


def _larger_gap_larger_weight(pairs: Pairs) -> tuple[Tensor, Tensor]:
    weight_N, head_N, tail_N = (pairs.diagnostics[name] for name in ("akl_weight", "head_gap", "tail_gap"))
    agreement_N = (weight_N - 0.5) * (head_N - tail_N)
    return torch.zeros_like(agreement_N), agreement_N


def forward_weights(pairs: Pairs, *, mu: float) -> dict[str, Tensor]:
    """{head rule: AKL's weight_N of KL(p || q)} at one mu."""
    return {head: Akl(mu=mu, head=head).forward_weight(pairs.log_q_NV, pairs.log_p_NV) for head in HEAD_RULES}


def _weight_rises_with_mu(pairs: Pairs) -> tuple[Tensor, Tensor]:
    by_mu = [forward_weights(pairs, mu=mu) for mu in MUS]
    weights_MR = torch.stack([torch.cat([weights["code"], weights["paper"]]) for weights in by_mu])
    return weights_MR[:-1].flatten(), weights_MR[1:].flatten()


def _ends_of_mu(pairs: Pairs) -> tuple[Tensor, Tensor]:
    kept = wide_enough(pairs)
    gap_NV = forward_gradient(kept).abs()
    total_N = gap_NV.sum(-1)

    def mean_gap(extreme_N1: Tensor) -> Tensor:  # equal extremes share one place
        equal_NV = kept.p_NV == extreme_N1
        return (gap_NV * equal_NV).sum(-1) / equal_NV.sum(-1)

    top_N, least_N = mean_gap(kept.p_NV.amax(-1, keepdim=True)), mean_gap(kept.p_NV.amin(-1, keepdim=True))
    rest_N, none_N = total_N - top_N, torch.zeros_like(total_N)
    wanted = {
        NEARLY_0: {"code": (top_N, rest_N), "paper": (top_N, rest_N), "pointwise": (total_N, none_N)},
        NEARLY_1: {"code": (total_N - least_N, least_N), "paper": (total_N, none_N), "pointwise": (none_N, total_N)},
    }
    return _error(
        *(
            weight_N - head_weight(*wanted[mu][head])
            for mu in wanted
            for head, weight_N in forward_weights(kept, mu=mu).items()
        )
    )


def wide_enough(pairs: Pairs) -> Pairs:
    """The pairs whose teacher gives every class more than LEAST_CLASS."""
    kept_N = pairs.p_NV.amin(-1) > LEAST_CLASS
    return Pairs(pairs.kind, pairs.student_logits_NV[kept_N], pairs.teacher_logits_NV[kept_N])


def statements() -> list[Statement]:
    """Every proven statement about pairs, in the sources' order."""
    return [
        Statement(
            "gradient_fkl", "The gradient of forward KL is q - p.", f"{ZHONG}, Definition 2.1",
            gradients_agree(forward_gradient, make_loss("fkl")), identity=True,
        ),
        Statement(
            "gradient_rkl", "The gradient of reverse KL is q (log(q/p) - R), R = KL(q || p).",
            f"{ZHONG}, Definition 2.2", gradients_agree(reverse_gradient, make_loss("rkl")), identity=True,
        ),
        Statement(
            "gradient_akl", "The gradient of AKL is a times that of forward KL plus (1 - a) times that of reverse KL, "
            "the weight a being a constant.", f"{ZHONG}, Definition 2.3; {AKL_PAPER}",
            gradients_agree(adaptive_gradient, make_loss("akl")), identity=True,
        ),
        Statement(
            "gradient_jsd", "The gradient of JSD is q (log(q/m) - KL(q || m)) / 2, m = (p + q) / 2.",
            f"{ZHONG}, Lemma 3.1", gradients_agree(partial(shannon_gradient, beta=0.5), make_loss("jsd")),
            identity=True,
        ),
        Statement(
            "gradient_generalised_jsd", "With m = beta p + (1 - beta) q the gradient of JSD is (1 - beta) q (log(q/m) "
            "- KL(q || m)), here for beta .1 and .9.", f"{ZHONG}, Lemma 3.1, for any beta",
            _generalised_gradients_agree, identity=True,
        ),
        Statement(
            "stationary_at_teacher", "At q = p the gradients of forward KL, reverse KL, AKL and JSD are 0.",
            f"{ZHONG}, Lemmas 2.1 and 3.2", _stationary_at_teacher, identity=True,
        ),
        Statement(
            "stationary_nowhere_else", "Where q differs from p none of these gradients is 0: its product with log(q/p) "
            "is positive.", f"{ZHONG}, Lemmas 2.1 and 3.2", _stationary_nowhere_else, strict=True,
        ),
        Statement(
            "akl_is_a_mix", "AKL is a KL(p || q) + (1 - a) KL(q || p), a the head's share of the total gap.", AKL_PAPER,
            _adaptive_value_is_the_mix, identity=True,
        ),
        Statement(
            "akl_between", "AKL's weight a lies in [0, 1], so AKL lies between the two KLs.", AKL_PAPER,
            _adaptive_value_is_between,
        ),
        Statement(
            "akl_larger_gap", "The part with the larger gap gets the larger weight: forward KL for the head, reverse "
            "KL for the tail.", AKL_PAPER, _larger_gap_larger_weight, unit="",
        ),
        Statement(
            "akl_rises_with_mu", "AKL's weight of forward KL never falls when mu rises (head rules `code` and "
            "`paper`).", f"{AKL_PAPER}, by its definition of the head", _weight_rises_with_mu, unit="",
        ),
        Statement(
            "akl_ends_of_mu", "As mu -> 0 the head is the top class alone; as mu -> 1 all but the least class (`code`) "
            "or all (`paper`); `pointwise` goes the other way, from all to none. a is the head's share of the gap.",
            f"{AKL_PAPER}, by its definition of the head", _ends_of_mu, identity=True, unit="",
        ),
        Statement(
            "signed_gaps_cancel", "The signed gaps of head and tail (sums of q - p) add up to 0.",
            f"{ZHONG}, Definition 4.3", _signed_gaps_cancel, identity=True, unit="of probability",
        ),
        Statement(
            "half_the_total_gap", "Over- and under-estimated mass are each half the total gap, which is twice the "
            "total variation.", f"{ZHONG}, Lemma 4.3", _half_the_total_gap, identity=True, unit="of probability",
        ),
        Statement(
            "forward_gradient_bound", "The norm of forward KL's gradient is at most the total gap.",
            f"{ZHONG}, Lemma 4.4", forward_bound, ratio=True, unit="",
        ),
        Statement(
            "reverse_gaps_cancel", "Reverse KL's gaps g = q (log(q/p) - R) add up to 0.", f"{ZHONG}, Lemma 4.6",
            lambda pairs: _error(reverse_gradient(pairs).sum(-1)), identity=True,
        ),
        Statement(
            "reverse_gradient_bound", "The norm of reverse KL's gradient is at most the sum of abs(g).",
            f"{ZHONG}, Lemma 4.7", reverse_bound, ratio=True,
        ),
        Statement(
            "reverse_gap_bound", "The sum of abs(g) is at most the sum of q abs(log(q/p)) plus R.",
            f"{ZHONG}, Lemma 4.7", _reverse_gap_bound, ratio=True,
        ),
        Statement(
            "reverse_gap_half", "The sum of abs(g) is twice the sum of g over the classes with log(q/p) > R.",
            f"{ZHONG}, Lemma 4.8", _reverse_gap_is_twice_the_over_rated, identity=True,
        ),
    ]  # fmt: skip
