"""A checkpoint holds what a run needs to go on, and nothing that is executed."""

import json
from pathlib import Path
from typing import Any

import torch

from kdrun.models.loading import load_model
from kdrun.models.scratch import train_tokenizer
from kdrun.training.checkpoints import find_checkpoints, save_checkpoint

from .conftest import tiny


def make(folder: Path, step: int, *, keep: int = 2, model: Any = None, optimizer: Any = None) -> Any:
    model = model or tiny(0).float()
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()
    tokenizer = train_tokenizer(["some text"], vocab_size=260)
    return save_checkpoint(
        folder, step, model=model, tokenizer=tokenizer, optimizer=optimizer, state={"loss": {"t": 0.5}}, keep=keep
    )


def test_weights_optimiser_random_state_and_loss_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny(0).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(5)
    torch.rand(3)
    checkpoint = make(tmp_path, 7, model=model, optimizer=optimizer)
    expected = torch.rand(4)

    loaded = load_model(str(checkpoint.student), key="resume")
    again = torch.optim.AdamW(loaded.parameters(), lr=0.1)
    torch.manual_seed(0)
    state = checkpoint.restore(again)
    assert state == {"loss": {"t": 0.5}}
    assert torch.equal(torch.rand(4), expected)
    for (name, before), after in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(before, after), name
    before, after = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert before.keys() == after.keys()
    for index in before:
        for key in before[index]:
            assert torch.equal(before[index][key], after[index][key]), (index, key)


def test_only_the_newest_are_kept_and_a_torn_one_is_not_found(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        make(tmp_path, step, keep=2)
    (tmp_path / "step-12").mkdir()  # no state.json: its writing did not end
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path)] == [4, 10]


def test_a_checkpoint_is_safetensors_and_json_only(tmp_path: Path) -> None:
    make(tmp_path, 3)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "step-3/optimizer.safetensors", "step-3/state.json", "step-3/student/config.json",
        "step-3/student/generation_config.json", "step-3/student/model.safetensors", "step-3/student/tokenizer.json",
        "step-3/student/tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "step-3/state.json").read_text()) == {"step": 3, "state": {"loss": {"t": 0.5}}}
