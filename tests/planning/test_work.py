"""Parameters and operations against real models and torch's own counter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from kdrun.planning.memory import parameters
from kdrun.planning.training import Training
from kdrun.planning.work import forward_flops, head_flops, training_flops

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "gpt2, tied": lambda: hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "llama, untied": lambda: hf.LlamaConfig(**SIZES, num_key_value_heads=1),
    "gemma2, wide heads": lambda: hf.Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=12),
}


def real(config: Any) -> Any:
    return hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # bmm, which the counter knows


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_operations_are_those_of_the_real_model(name: str) -> None:
    config, ids_BT = CONFIGS[name](), torch.zeros(3, 20, dtype=torch.long)
    model = real(CONFIGS[name]())
    assert parameters(config) == model.num_parameters()
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    forward = forward_flops(config, tokens=60, squares=3 * 20**2)
    assert forward == pytest.approx(counter.get_total_flops(), rel=0.02)
    with counter:
        hidden.sum().backward()
    assert counter.get_total_flops() == pytest.approx(2 * forward, rel=0.02), "the context counts anew"


def test_a_run_counts_its_rows_and_only_scored_tokens_in_the_heads() -> None:
    """By hand: 2 epochs of 4 rows of 20 tokens, 5 scored; student 3 x, teacher 1 x; cached: no body; checkpointing."""
    config, teacher = CONFIGS["gpt2, tied"](), CONFIGS["llama, untied"]()
    training = Training(
        student=config, teacher=teacher, use="live", lengths=np.full(4, 20), scored=np.full(4, 5), epochs=2,
        max_steps=None, batch_size=2, micro_batch_size=None, seed=0, precision="fp32", teacher_dtype="fp32",
        checkpointing=False, chunk_tokens=None,
    )  # fmt: skip
    body, theirs = (forward_flops(c, tokens=160, squares=8 * 400) for c in (config, teacher))
    head = 2 * 16 * 50 * 40
    assert head_flops(config, scored=40, rows=50) == head
    expected = {"student": 3 * body, "student's head": 3 * head, "teacher": theirs,
                "teacher's head": head}  # fmt: skip
    assert training_flops(training) == pytest.approx(expected)
    assert "teacher" not in training_flops(replace(training, use="cached"))
    assert training_flops(replace(training, checkpointing=True))["student"] == pytest.approx(4 * body)
    assert training_flops(replace(training, max_steps=1))["student's head"] == pytest.approx(3 * head / 4)


def test_the_sizes_of_llama_7b_are_the_published_ones() -> None:
    assert parameters(hf.LlamaConfig()) == 6_738_415_616
