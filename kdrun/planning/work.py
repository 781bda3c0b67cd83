"""The operations of a training: tokens times parameters, and attention.

A matrix product of a token with P weights takes 2 P operations forward and 4 P backward (the gradients of its input and
of the weights): 6 P in all (Kaplan et al., arXiv 2001.08361, section 2.1). Attention adds, a layer and row of T tokens,
two products of T x T x width forward, full squares: a causal kernel may leave out half of them.
"""

from __future__ import annotations

from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from kdrun.planning.memory import made
from kdrun.planning.training import Training


def forward_flops(config: Any, *, tokens: float, squares: float) -> float:
    """Of a body, without its head. squares: the sum of the rows' squared lengths."""
    from torch import nn

    text = config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    with FakeTensorMode():
        body = made(config).base_model
        looked_up = {id(m.weight) for m in body.modules() if isinstance(m, nn.Embedding)}
        weights = sum(p.numel() for p in body.parameters() if p.ndim == 2 and id(p) not in looked_up)
    return 2.0 * weights * tokens + 4.0 * text.num_hidden_layers * heads * head_width * squares


def head_flops(config: Any, *, scored: float, rows: int) -> float:
    """Of a head's projection, forward: scored tokens only, vocabulary rows that both models have."""
    return 2.0 * config.get_text_config().hidden_size * rows * scored


def training_flops(training: Training) -> dict[str, float]:
    """Operations of the whole run, padding not counted: the student's body and head forward and backward (the body's
    forward twice with checkpointing), the teacher's forward, its body only where it is run."""
    chosen, times = training.seen_rows()
    lengths = training.lengths[chosen].astype(float)
    sums = {"tokens": times * lengths.sum(), "squares": times * (lengths**2).sum()}
    scored = times * float(training.scored[chosen].sum())
    asks = training.teacher is not None and training.use != "idle"
    configs = [training.student, training.teacher] if asks else [training.student]
    rows = min(config.get_text_config().vocab_size for config in configs)
    found = {
        "student": (4 if training.checkpointing else 3) * forward_flops(training.student, **sums),
        "student's head": 3 * head_flops(training.student, scored=scored, rows=rows),
    }
    if asks:
        if training.use == "live":
            found["teacher"] = forward_flops(training.teacher, **sums)
        found["teacher's head"] = head_flops(training.teacher, scored=scored, rows=rows)
    return found
