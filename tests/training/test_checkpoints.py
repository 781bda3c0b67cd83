"""A checkpoint holds what a run needs to go on, whole or not at all, and nothing that is executed."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from kdrun.losses import make_loss
from kdrun.models.loading import load_model
from kdrun.models.scratch import train_tokenizer
from kdrun.training.checkpoints import find_checkpoints, newest_checkpoint, save_checkpoint
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement

from .conftest import tiny

RUN = "a1"


def placed(model: Any, optimizer: torch.optim.Optimizer) -> Placement:
    return Placement(StudentObjective(model, make_loss("sft")), lambda: optimizer, Accelerator(cpu=True))


def make(folder: Path, step: int, *, keep: int = 2, model: Any = None, optimizer: Any = None, run: str = RUN) -> Any:
    model = model or tiny(0).float()
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    placement = placed(model, optimizer)
    model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()
    tokenizer = train_tokenizer(["some text"], vocab_size=260)
    return save_checkpoint(
        folder, step, run=run, model=model, tokenizer=tokenizer, placement=placement, state={"loss": {"t": 0.5}},
        keep=keep,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for step in (4, 10):
        make(folder, step)
    return folder


@pytest.fixture
def folder(two: Path, tmp_path: Path) -> Path:
    """Checkpoints after steps 4 and 10."""
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


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
    state = checkpoint.restore(placed(loaded, again))
    assert state == {"loss": {"t": 0.5}}
    assert torch.equal(torch.rand(4), expected)
    for (name, before), after in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(before, after), name
    before, after = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert before.keys() == after.keys()
    for index in before:
        for key in before[index]:
            assert torch.equal(before[index][key], after[index][key]), (index, key)


def test_only_the_newest_are_kept(folder: Path) -> None:
    make(folder, 12, keep=2)
    assert [checkpoint.step for checkpoint in find_checkpoints(folder)] == [10, 12]
    assert sorted(path.name for path in folder.iterdir()) == ["step-10", "step-12"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "a manifest cut short": lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text()[:90]),
    "a manifest of another shape": lambda f: (f / "manifest.json").write_text('{"files": [1]}'),
    "a manifest of another step": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"step": 10', '"step": 11')
    ),
    "a flipped bit in the weights": lambda f: flip(f / "student" / "model.safetensors"),
    "a flipped bit in the optimiser": lambda f: flip(f / "optimizer.safetensors"),
    "a flipped bit in the state": lambda f: flip(f / "state.json"),
    "a file cut short": lambda f: os.truncate(f / "optimizer.safetensors", 999),
    "a file gone": lambda f: (f / "student" / "config.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_named_kept_aside_and_not_used(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](folder / "step-10")
    found = newest_checkpoint(folder, run=RUN)
    assert found is not None and found.step == 4
    assert sorted(path.name for path in folder.iterdir()) == ["step-4", "unused-step-10"]
    (line,) = caplog.messages
    assert "\n" not in line and str(folder / "step-10") in line and "unused-step-10" in line
    assert ("sha256" in line) == ("bit" in damage)


def test_a_checkpoint_of_another_run_is_not_taken(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_checkpoint(folder, run="b2") is None
    assert all("is not used: it is of another run" in line for line in caplog.messages)
    make(folder, 3, run="b2", keep=1)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-3", "unused-step-10", "unused-step-4"]


def test_what_a_killed_process_left_aside_goes_at_the_next_start(folder: Path) -> None:
    for name in (".step-12.tmp", ".step-2.old"):
        shutil.copytree(folder / "step-4", folder / name)
    found = newest_checkpoint(folder, run=RUN)
    assert found is not None and found.step == 10
    assert sorted(path.name for path in folder.iterdir()) == ["step-10", "step-4"]


def save_and_die(folder: Path, operation: int) -> bool:
    """Save step 12 into a folder, keeping one, in a child that is killed before its n-th operation on a file there;
    returns whether it came to its end before that."""
    child = os.fork()
    if child == 0:
        seen = [0]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(folder) in str(arguments):
                seen[0] += 1
                if seen[0] == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        make(folder, 12, keep=1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_a_kill_at_any_file_operation_of_saving_leaves_a_whole_checkpoint(folder: Path, tmp_path: Path) -> None:
    """The strictest case: only one is kept."""
    shutil.rmtree(folder / "step-4")
    steps: list[int] = []
    ended = False
    while not ended:
        work = Path(shutil.copytree(folder, tmp_path / "work", dirs_exist_ok=True))
        ended = save_and_die(work, len(steps) + 1)
        found = newest_checkpoint(work, run=RUN)
        assert found is not None, steps
        steps.append(found.step)
        assert {path.name for path in work.iterdir()} <= {"step-10", "step-12"}, steps
        shutil.rmtree(work)
    assert steps == sorted(steps) and set(steps) == {10, 12} and len(steps) > 20


def test_a_checkpoint_is_safetensors_and_json_only(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in (folder / "step-4").rglob("*") if path.is_file()}
    assert files == {
        "step-4/manifest.json", "step-4/optimizer.safetensors", "step-4/state.json", "step-4/student/config.json",
        "step-4/student/generation_config.json", "step-4/student/model.safetensors", "step-4/student/tokenizer.json",
        "step-4/student/tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((folder / "step-4/state.json").read_text()) == {"step": 4, "state": {"loss": {"t": 0.5}}}
