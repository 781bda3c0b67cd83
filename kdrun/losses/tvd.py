"""Total variation distance, a baseline of DistiLLM (Ko et al., arXiv 2402.03898)."""

from torch import Tensor

from kdrun.losses.interface import Loss, teacher_of, through_log_softmax_


class Tvd(Loss):
    """1/2 sum abs(p - q), in [0, 1]; the gradient is taken as 0 at entries where p = q."""

    is_f_divergence = True

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return 0.5 * (log_p_NV.exp() - log_q_NV.exp()).abs().sum(-1)

    def with_gradient(
        self, log_q_NV: Tensor, log_p_NV: Tensor | None, target_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q_NV = log_q_NV.exp()
        gap_NV = q_NV - teacher_of(self, log_p_NV).exp()
        nats_N = 0.5 * gap_NV.abs().sum(-1)
        return nats_N, through_log_softmax_(gap_NV.sign_().mul_(q_NV).mul_(0.5), q_NV)
