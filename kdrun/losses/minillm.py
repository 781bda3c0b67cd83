"""MiniLLM's policy gradient of the sequence's reverse KL (Gu et al., arXiv 2306.08543, section 2.2).

For a token y_t of a text drawn from share * p + (1 - share) * q, with w = q(y_t) / (share p(y_t) + (1 - share) q(y_t)),

    gradient = w [ gradient of KL(q || p) at t  -  R gradient of log q(y_t) ],    R = sum of r over t' > t,

r = log p(y_t') - log q(y_t'), without gradient. `length_norm` divides R by the number of its terms. Without
`single_step` the first term goes, and R begins at t: then, too, the mean is the gradient of the sequence's reverse KL
(with share 0 and no normalisation or clip). `ratio_clip` takes away the gradient of -R w where w is past 1 +- it on the
side that R pushes to.

The published code differs: R begins at t beside the single-step term; w does not weigh that term; R is discounted by
0.95 (`gamma`), divided by the number of its terms whatever its length_norm says, of rewards divided by 0.5
(`reward_scale`), and whitened over the padded micro-batches of all ranks, which would make a step's gradient depend on
how it is split; four epochs of updates go over 256 texts, here a text gives one; its corpus is distilled, too.
"""

import torch
from torch import Tensor

from kdrun.losses.interface import Loss
from kdrun.losses.parameters import checked_flag, checked_number
from kdrun.losses.rkl import Rkl
from kdrun.losses.written import TokenWeights, WrittenText


class Minillm(Rkl):
    """KL(student || teacher) at every token, weighed; and the cross-entropy of the student's own tokens, weighed by
    what followed them. Its nats, in logs, are those of the reverse KL."""

    is_f_divergence = False

    def __init__(
        self,
        *,
        single_step: bool = True,
        length_norm: bool = True,
        gamma: float = 1.0,
        reward_scale: float = 1.0,
        reward_clip: float = 100.0,
        ratio_clip: float = 0.2,
    ) -> None:
        self.single_step = checked_flag("single_step", single_step)
        self.length_norm = checked_flag("length_norm", length_norm)
        self.gamma = checked_number("gamma", gamma, low=0, high=1, example=1.0)
        self.reward_scale = checked_number("reward_scale", reward_scale, low=0, low_open=True, example=1.0)
        self.reward_clip = checked_number("reward_clip", reward_clip, low=0, low_open=True, example=100.0)
        self.ratio_clip = checked_number("ratio_clip", ratio_clip, low=0, low_open=True, example=0.2)

    def on(self, writer: str) -> Loss:
        """On text that the student did not draw there is no policy: the reverse KL of its tokens."""
        return self if writer == "student" else Rkl()

    def weigh(self, text: WrittenText) -> TokenWeights:
        log_q_N, log_p_N = text.log_probs()
        ratio_N = importance(log_q_N, log_p_N, text.teacher_share)
        reward_N = ((log_p_N - log_q_N) / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        return_N = self.returns(reward_N, text.lengths)
        past_N = torch.where(return_N > 0, ratio_N > 1 + self.ratio_clip, ratio_N < 1 - self.ratio_clip)
        return TokenWeights(ratio_N * self.single_step, (ratio_N * return_N).masked_fill(past_N, 0))

    def returns(self, reward_N: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """R of every token [N]: its text's later rewards, discounted; divided by their number with `length_norm`."""
        longest = max(lengths, default=0)
        real_RT = torch.arange(longest) < torch.tensor(lengths)[:, None]
        real_RT = real_RT.to(reward_N.device)
        reward_RT = reward_N.new_zeros(real_RT.shape).masked_scatter(real_RT, reward_N)
        ahead_TT = torch.arange(longest)[None, :] - torch.arange(longest)[:, None] - int(self.single_step)
        counted_TT = (ahead_TT >= 0).to(reward_N)
        discount_TT = counted_TT * self.gamma ** ahead_TT.clamp(min=0).to(reward_N)
        return_RT = reward_RT @ discount_TT.T
        if self.length_norm:
            return_RT = return_RT / (real_RT.to(reward_N) @ counted_TT.T).clamp(min=1)
        return return_RT[real_RT]


def importance(log_q_N: Tensor, log_p_N: Tensor, teacher_share: float) -> Tensor:
    """q / (share p + (1 - share) q) of tokens drawn from that mixture; 1 where the share is 0."""
    return 1 / (1 - teacher_share + teacher_share * (log_p_N - log_q_N).exp())
