"""Learning rate and weight decay."""

import pytest
import torch

from kdrun.training.optimizer import learning_rate, make_optimizer


def test_the_cosine_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-7)
    for step in range(50):
        ours = learning_rate(step, num_steps=50, lr=5e-4, lr_min=1e-7, schedule="cosine", warmup_steps=0)
        assert ours == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_the_warm_up_is_linear_and_reaches_the_rate() -> None:
    rates = [learning_rate(i, num_steps=20, lr=1.0, lr_min=0.0, schedule="constant", warmup_steps=4) for i in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(rates[4:]) == {1.0}


def test_biases_and_norms_do_not_decay() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2))
    optimizer = make_optimizer(model, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | spared == set(names.values())
    assert all(".ln_" in name or name.endswith("bias") for name in spared)
    assert not any(".ln_" in name or name.endswith("bias") for name in decayed)
