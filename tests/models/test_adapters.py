"""LoRA: the frozen model is the same model, adapters alone learn, and what is written is their sum."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdrun.data.batch import make_batch
from kdrun.errors import UserError
from kdrun.generation.generate import Sampling, generate
from kdrun.losses import make_loss
from kdrun.models.adapters import Adapted, add_adapter
from kdrun.models.heads import check_head
from kdrun.models.loading import save_model
from kdrun.teachers.live import LiveTeacher
from kdrun.training.objective import StudentObjective
from kdrun.training.optimizer import make_optimizer
from tests.training.conftest import END, VOCABULARY, encoded
from tests.training.test_families import make, plain_objective

IDS_BT = torch.tensor([[5, 9, 3, 7, 1, 2], [4, 8, 6, 2, 11, 12]])
LORA: dict[str, Any] = {"r": 2, "alpha": 8, "dropout": 0.0, "targets": None, "seed": 0}


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        pass


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if ".lora_" in name}


def moved(adapted: Adapted) -> Adapted:
    """With adapters that do something: B starts at 0."""
    torch.manual_seed(3)
    for weight in adapters(adapted.model).values():
        torch.nn.init.normal_(weight, std=0.1)
    return adapted


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, in units of the spread."""
    return float((logits - expected).detach().abs().max() / expected.detach().std())


@pytest.fixture(params=["gpt2", "llama"])  # a tied head and transposed weights; an untied one
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param, width=8, rows=VOCABULARY, seed=1)


@pytest.mark.parametrize("targets", [None, ["all-linear"]])
def test_a_new_adapter_changes_no_logit_and_no_random_state(model: Any, targets: list[str] | None) -> None:
    expected, state = model(IDS_BT).logits, torch.get_rng_state()
    family = type(model)
    adapted = add_adapter(model, **{**LORA, "targets": targets})
    assert type(adapted.model) is family and not any(part.training for part in adapted.model.modules())
    assert torch.equal(adapted.model(IDS_BT).logits, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_written_is_a_plain_model_with_the_adapted_logits(model: Any, tmp_path: Path) -> None:
    for targets in (None, ["all-linear"]):
        adapted = moved(add_adapter(copy.deepcopy(model), **{**LORA, "targets": targets}))
        expected = adapted.model(IDS_BT).logits
        assert difference(model(IDS_BT).logits, expected) > 0.1
        before = {name: weight.clone() for name, weight in adapters(adapted.model).items()}
        save_model(adapted.model, NoTokenizer(), tmp_path / str(targets), weights=adapted.merge())
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / str(targets))
        assert difference(plain(IDS_BT).logits, expected) < 1e-5
        assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
        # merged in place: it still computes the same, and its adapters can go into a checkpoint
        assert difference(adapted.model(IDS_BT).logits, expected) < 1e-5
        for name, weight in adapters(adapted.model).items():
            assert torch.equal(weight, before[name])


def test_a_merged_weight_is_the_frozen_one_plus_alpha_over_r_times_b_a(model: Any) -> None:
    adapted = moved(add_adapter(copy.deepcopy(model), **LORA))
    parts, merged = adapters(adapted.model), adapted.merge()
    frozen = model.state_dict()
    names = [name.removesuffix(".lora_A.default.weight") for name in parts if "lora_A" in name]
    assert names
    for name in names:
        a_RD, b_ER = (parts[f"{name}.lora_{part}.default.weight"] for part in "AB")
        delta = 8 / 2 * (b_ER @ a_RD)
        delta = delta.T if "c_attn" in name else delta  # GPT-2 keeps its weights transposed
        torch.testing.assert_close(merged[f"{name}.weight"], frozen[f"{name}.weight"] + delta)


def test_gradients_are_autograds_on_whole_logits_and_reach_the_adapters_alone(model: Any) -> None:
    rows, teacher = encoded(6), make("gpt2", width=16, rows=VOCABULARY, seed=2)
    adapted = moved(add_adapter(model, **LORA)).model
    assert check_head(adapted, IDS_BT, name="student") < 1e-5
    expected = plain_objective(adapted, teacher, rows, "akl", kd_ratio=0.7)
    expected.backward()
    reference = {name: weight.grad.clone() for name, weight in adapters(adapted).items()}
    adapted.zero_grad()
    objective = StudentObjective(adapted, make_loss("akl"), kd_ratio=0.7, chunk_tokens=16)
    total = objective(make_batch(rows, range(6), pad_id=END, device="cpu"), LiveTeacher(teacher, rows=None))[0]
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name for name, weight in adapted.named_parameters() if weight.grad is not None} == reference.keys()
    for name, weight in adapters(adapted).items():
        torch.testing.assert_close(weight.grad, reference[name], rtol=1e-3, atol=1e-5)
    optimizer = make_optimizer(adapted, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in adapters(adapted).values()}


def test_texts_are_those_of_the_merged_model(model: Any, tmp_path: Path) -> None:
    adapted = moved(add_adapter(model, **LORA))
    prompts, sampling = [[5, 9, 3], [7], [11, 12]], Sampling(8, temperature=0)
    words: dict[str, Any] = {"eos_id": END, "pad_id": END, "batch_size": 2, "seed": 0}
    written = generate(adapted.model, prompts, sampling, **words)
    save_model(adapted.model, NoTokenizer(), tmp_path, weights=adapted.merge())
    assert generate(AutoModelForCausalLM.from_pretrained(tmp_path), prompts, sampling, **words) == written


def test_a_checkpoint_holds_the_adapters_alone_to_the_bit(model: Any, tmp_path: Path) -> None:
    adapted = moved(add_adapter(copy.deepcopy(model), **LORA))
    adapted.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    again = add_adapter(copy.deepcopy(model), **{**LORA, "seed": 1})
    again.load(tmp_path)
    for name, weight in adapters(adapted.model).items():
        assert torch.equal(adapters(again.model)[name], weight)
    for other in ({"r": 3}, {"targets": ["all-linear"]}):
        with pytest.raises(UserError, match="adapter: .* has none of this rank on these layers; resume with the run's"):
            add_adapter(copy.deepcopy(model), **{**LORA, **other}).load(tmp_path)
    with pytest.raises(UserError, match="has none of this rank"):
        again.load(tmp_path / "nothing")


@pytest.mark.parametrize("targets", [["lm_head"], ["wte"], ["no_such_layer"], ["c_attn", "lm_head"]])
def test_the_head_the_embeddings_and_unknown_layers_are_refused(targets: list[str]) -> None:
    with pytest.raises(UserError, match=r"^adapter.targets=\[.*(name other layers|not found in the base model.*)$"):
        add_adapter(make("gpt2", width=8, rows=VOCABULARY, seed=1), **{**LORA, "targets": targets})
