"""Total variation distance, a baseline of DistiLLM (Ko et al., arXiv 2402.03898)."""

from torch import Tensor

from kdrun.losses.interface import Loss


class Tvd(Loss):
    """1/2 sum abs(p - q), in [0, 1]; the gradient is taken as 0 at entries where p = q."""

    def divergence(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        return 0.5 * (log_p_NV.exp() - log_q_NV.exp()).abs().sum(-1)
