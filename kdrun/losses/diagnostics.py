"""What the student still misses, token by token: cheap measurements on logits that a loss has at hand anyway."""

import torch
from torch import Tensor

from kdrun.losses.fkl import kl
from kdrun.losses.head import head_and_tail_gaps, head_weight
from kdrun.losses.interface import drop_impossible, log_softmax
from kdrun.losses.jsd import Jsd
from kdrun.losses.tvd import Tvd


@torch.no_grad()
def divergence_diagnostics(student_logits_NV: Tensor, teacher_logits_NV: Tensor, mu: float = 0.5) -> dict[str, Tensor]:
    """{name: value_N}, detached, float32 (float64 if a logit tensor is float64).

    fkl = KL(teacher || student), rkl, jsd (beta 1/2), teacher_entropy, student_entropy: nats. tvd in [0, 1]. head_gap,
    tail_gap in [0, 2]: sums of abs(p - q), head by the rule `code` with mass mu. akl_weight in [0, 1]: AKL's weight of
    KL(teacher || student). top1_agreement: 1 where both have the same most likely entry, else 0.
    """
    dtype = torch.promote_types(student_logits_NV.dtype, teacher_logits_NV.dtype)
    log_q_NV, log_p_NV = drop_impossible(log_softmax(student_logits_NV, dtype), log_softmax(teacher_logits_NV, dtype))
    q_NV, p_NV = log_q_NV.exp(), log_p_NV.exp()
    head_gap_N, tail_gap_N = head_and_tail_gaps(p_NV, q_NV, mu=mu)
    return {
        "fkl": kl(log_p_NV, log_q_NV),
        "rkl": kl(log_q_NV, log_p_NV),
        "jsd": Jsd().divergence(log_q_NV, log_p_NV),
        "tvd": Tvd().divergence(log_q_NV, log_p_NV),
        "teacher_entropy": -(p_NV * log_p_NV).sum(-1),
        "student_entropy": -(q_NV * log_q_NV).sum(-1),
        "head_gap": head_gap_N,
        "tail_gap": tail_gap_N,
        "akl_weight": head_weight(head_gap_N, tail_gap_N),
        "top1_agreement": (log_q_NV.argmax(-1) == log_p_NV.argmax(-1)).to(log_q_NV.dtype),
    }
