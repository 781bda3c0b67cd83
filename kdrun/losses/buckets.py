"""Divergences between coarse distributions: the teacher's K likeliest entries and one bucket for the rest.

Merging entries never makes an f-divergence larger, so the value is a lower bound of the exact one, and equal to it
where student and teacher share their rest out alike. Losses that look at single entries of the rest, at ranks or at
logits have no such reading and are refused (`Loss.is_f_divergence`).

Shapes: N tokens, V vocabulary, K entries kept, J buckets (K + 1, or V when K = V).
"""

import torch
from torch import Tensor

from kdrun.losses.interface import Loss, drop_impossible, log_softmax, nats_and_gradient
from kdrun.losses.sft import cross_entropy, cross_entropy_gradient


def teacher_buckets(teacher_logits_NV: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """(ids_NK, log_p_NJ): the K likeliest entries from likely to rare, and last the rest's mass.

    Summed over the rest itself: 1 - sum(p) would leave rounding of 1e-7 where the rest is rare.
    """
    log_p_NV = log_softmax(teacher_logits_NV)
    ids_NK = log_p_NV.topk(topk, dim=-1, sorted=True).indices
    return ids_NK, in_buckets(log_p_NV, ids_NK)


def in_buckets(log_probs_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Log-probabilities [N, J] of the entries and, last, of the rest (left out when there is none)."""
    kept_NK = log_probs_NV.gather(-1, ids_NK)
    if ids_NK.shape[1] == log_probs_NV.shape[1]:
        return kept_NK
    rest_N1 = log_probs_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([kept_NK, rest_N1], dim=-1)


def check_served(loss: Loss) -> None:
    """
    Raises:
        ValueError: for a loss that has no reading on buckets.
    """
    if loss.needs_teacher and not loss.is_f_divergence:
        raise ValueError(
            f"{type(loss).__name__.lower()} looks at single entries, at ranks or at mixtures of powers, which buckets "
            "do not hold: only f-divergences can be taken between the likeliest entries and a rest"
        )


def bucketed_nats(loss: Loss, log_q_NV: Tensor, ids_NK: Tensor, log_p_NJ: Tensor) -> Tensor:
    """nats_N of the divergence between the coarse distributions; no gradient is prepared."""
    return loss.from_log_probs(*drop_impossible(in_buckets(log_q_NV, ids_NK), log_p_NJ), None)


def bucketed_gradient(loss: Loss, log_q_NV: Tensor, ids_NK: Tensor, log_p_NJ: Tensor) -> tuple[Tensor, Tensor]:
    """(nats_N, their gradient_NV in the student's logits).

    A kept entry's logit moves its own bucket, a logit of the rest moves the rest's by its share q / sum(q) of it.
    """
    log_q_NJ = in_buckets(log_q_NV, ids_NK)
    nats_N, gradient_NJ = nats_and_gradient(loss, log_q_NJ, log_p_NJ, None)
    if log_q_NJ.shape[1] == ids_NK.shape[1]:
        return nats_N, torch.empty_like(log_q_NV).scatter_(-1, ids_NK, gradient_NJ)
    gradient_NV = (log_q_NV - log_q_NJ[:, -1:]).exp_().mul_(gradient_NJ[:, -1:])
    return nats_N, gradient_NV.scatter_(-1, ids_NK, gradient_NJ[:, :-1])


class BucketedMix(Loss):
    """(1 - kd_ratio) cross-entropy + kd_ratio divergence on buckets, for one call of `chunked_objective`.

    It brings its teacher with it (so `needs_teacher` is false) and is asked for consecutive rows, each once, as
    `chunked_objective` does; `divergence_sum` holds the divergence of the rows so far, in nats, detached.
    """

    traceable = False
    needs_teacher = False

    def __init__(self, loss: Loss, ids_NK: Tensor, log_p_NJ: Tensor, *, kd_ratio: float) -> None:
        """
        Raises:
            ValueError: for a loss that has no reading on buckets.
        """
        check_served(loss)
        self.loss, self.ids_NK, self.log_p_NJ, self.kd_ratio = loss, ids_NK, log_p_NJ, kd_ratio
        self.num_done = 0
        self.divergence_sum = log_p_NJ.new_zeros(())

    def _next(self, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
        rows = slice(self.num_done, self.num_done + len(log_q_NV))
        self.num_done = rows.stop
        return self.ids_NK[rows], self.log_p_NJ[rows].to(log_q_NV.dtype)

    def from_log_probs(self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None) -> Tensor:
        return self._mix(bucketed_nats(self.loss, log_q_NV, *self._next(log_q_NV)), log_q_NV, target_N)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        nats_N, gradient_NV = bucketed_gradient(self.loss, log_q_NV, *self._next(log_q_NV))
        gradient_NV *= self.kd_ratio
        if self.kd_ratio < 1 and target_N is not None:
            gradient_NV.add_(cross_entropy_gradient(log_q_NV, target_N), alpha=1 - self.kd_ratio)
        return self._mix(nats_N, log_q_NV, target_N), gradient_NV

    def _mix(self, nats_N: Tensor, log_q_NV: Tensor, target_N: Tensor | None) -> Tensor:
        self.divergence_sum = self.divergence_sum + nats_N.detach().sum()
        if self.kd_ratio == 1:
            return nats_N
        if target_N is None:
            raise ValueError("kd_ratio below 1 mixes in the cross-entropy of the data: target_N is missing")
        return self.kd_ratio * nats_N + (1 - self.kd_ratio) * cross_entropy(log_q_NV, target_N)
