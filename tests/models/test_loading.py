"""Checkpoints of safetensors load, mistakes are one line; what would run code is in tests/test_untrusted.py."""

import os
from pathlib import Path

import pytest
import torch

from kdrun.errors import UserError
from kdrun.models.loading import load_model, load_tokenizer, locate, save_model
from kdrun.models.scratch import make_model, train_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = make_model(vocab_size=260, context=16, layers=1, width=8, heads=2, end_id=0, seed=0)
    save_model(model, train_tokenizer(["text"], vocab_size=260), tmp_path / "run" / "student")
    return tmp_path / "run"


def test_a_saved_model_comes_back_bit_for_bit_and_from_its_run_directory(saved: Path) -> None:
    model = make_model(vocab_size=260, context=16, layers=1, width=8, heads=2, end_id=0, seed=0)
    for reference in (saved / "student", saved):
        for before, after in zip(model.parameters(), load_model(str(reference), key="k").parameters(), strict=True):
            assert torch.equal(before, after)
    assert load_tokenizer(str(saved), key="k").eos_token_id == 0
    assert not list(saved.glob(".*")), "nothing is left aside"


def test_a_model_in_memory_does_not_change_with_its_file(saved: Path) -> None:
    """safetensors maps float32 weights from the file: cut short, the process would end by SIGBUS."""
    model = load_model(str(saved), key="k")
    before = [parameter.clone() for parameter in model.parameters()]
    os.truncate(saved / "student" / "model.safetensors", 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.lm_head.weight is model.transformer.wte.weight, "tied weights stay tied"


def test_a_checkpoint_that_lacks_a_weight_is_refused_not_filled_with_noise(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = saved / "student" / "model.safetensors"
    weights = load_file(path)
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, transformer\.h\.0\.mlp\.c_fc\.weight"):
        load_model(str(saved), key="student")


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "a/b/c", "outputs/x", "", "..", "a b"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pair.teacher"):
        locate(reference or str(tmp_path), key="pair.teacher")


@pytest.mark.parametrize("reference", ["gpt2", "MiniLLM/teacher-gpt2-1.5B", "Qwen/Qwen2.5-7B-Instruct"])
def test_hub_names_are_left_as_they_are(reference: str) -> None:
    assert locate(reference, key="pair.teacher") == reference


def test_a_hub_name_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(UserError, match=r"pair.student=nobody/nothing: cannot be loaded") as error:
        load_model("nobody/nothing", key="pair.student")
    assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_is_refused(saved: Path) -> None:
    for path in (saved / "student").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="pair.student=.*tokenizer"):
        load_tokenizer(str(saved), key="pair.student")
