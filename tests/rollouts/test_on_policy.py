"""Learning from its own text lowers the student's reverse KL over whole texts, measured by enumerating them all."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdrun.data.encoding import EncodedSet
from kdrun.generation.sampling import Sampling
from kdrun.losses import make_loss
from kdrun.models.scratch import make_model
from kdrun.rollouts.rollout import StudentText
from kdrun.rollouts.writer import StudentWriter
from kdrun.teachers.live import LiveTeacher
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement

END, VOCABULARY, LONGEST, STEPS = 0, 4, 3, 30
PROMPTS = [[1], [2], [3]]


def small(seed: int) -> Any:
    """A real GPT-2 whose distributions are far from uniform."""
    model = make_model(vocab_size=VOCABULARY, context=8, layers=1, width=8, heads=2, end_id=END, seed=seed)
    model.transformer.wte.weight.data *= 40
    return model


@torch.no_grad()
def sequence_reverse_kl(student: Any, teacher: Any) -> float:
    """Mean over the prompts of the sum over texts of q(text) log(q(text) / p(text)): END ends a text, or its length."""
    texts = [
        t for t in itertools.product(range(VOCABULARY), repeat=LONGEST) if not any((*t, END)[(*t, END).index(END) :])
    ]
    ids_RT = torch.tensor([[*prompt, *text] for prompt in PROMPTS for text in texts])
    text_RT = ids_RT[:, 1:]
    is_real_RT = (text_RT == END).cumsum(1) - (text_RT == END).long() == 0  # up to the first END
    log_RTV = (model(input_ids=ids_RT).logits[:, :-1].double().log_softmax(-1) for model in (student, teacher))
    log_q_R, log_p_R = ((x.gather(-1, text_RT[..., None])[..., 0] * is_real_RT).sum(1) for x in log_RTV)
    assert log_q_R.exp().sum().item() == pytest.approx(len(PROMPTS)), "all texts"
    return float((log_q_R.exp() * (log_q_R - log_p_R)).sum()) / len(PROMPTS)


@pytest.mark.parametrize(("name", "params"), [("rkl", {}), ("minillm", {"length_norm": False})])
def test_on_policy_training_lowers_the_sequence_level_reverse_kl(name: str, params: dict[str, Any]) -> None:
    student, teacher = small(1), small(2)
    rows = EncodedSet.of_rows([np.array([*p, END]) for p in PROMPTS] * 16, [1] * 48, range(48))
    writer = StudentWriter(
        student, Sampling(LONGEST), eos_id=END, pad_id=END, batch_size=48, max_tokens=1 + LONGEST, seed=0
    )
    settings = LoopSettings(
        num_steps=STEPS, batch_size=48, micro_batch_size=None, seed=0, clip_norm=1.0, learning_rate=lambda step: 0.03,
        log_every=STEPS,
    )  # fmt: skip
    objective = StudentObjective(student, make_loss(name, **params))
    loop = Loop(
        Placement(objective, lambda: torch.optim.Adam(student.parameters(), lr=0.03), Accelerator(cpu=True)), rows,
        settings, teacher=LiveTeacher(teacher, rows=None), pad_id=END,
        rollout=StudentText(rows, writer, share=lambda progress: 1.0, num_steps=STEPS, seed=0),
    )  # fmt: skip
    before = sequence_reverse_kl(student, teacher)
    loop.run(start_step=0, on_step=lambda *_: None)
    after = sequence_reverse_kl(student, teacher)
    print(f"{name} {params}: {before:.4f} nats a text before, {after:.4f} after {STEPS} steps")
    assert before > 0.5
    assert after < 0.2 * before
