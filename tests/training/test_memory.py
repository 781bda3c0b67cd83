"""A first step for which memory does not suffice is done again in smaller pieces, and is the same step."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.data.encoding import EncodedSet
from kdrun.errors import UserError
from kdrun.losses import MatchedGradient, make_loss
from kdrun.training.memory import out_of_memory

from .conftest import make_loop


def short_of_memory(student: Any, *, above: int, calls: list[int] | None = None) -> Any:
    """The student, which raises what a GPU's allocator raises for a forward pass of more than `above` rows."""

    def refuse(module: Any, arguments: Any, kwargs: dict[str, Any]) -> None:
        rows = len(kwargs.get("input_ids", arguments[0] if arguments else ()))
        if calls is not None:
            calls.append(rows)
        if rows > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    student.transformer.register_forward_pre_hook(refuse, with_kwargs=True)
    return student


def trained(loop: Any) -> tuple[list[torch.Tensor], list[dict]]:
    torch.manual_seed(3)
    logged: list[dict] = []
    loop.run(start_step=0, on_step=lambda step, metrics: logged.append(metrics))
    times = ("tokens_per_s", "step_s", "teacher_share")
    lines = [{name: value for name, value in line.items() if name not in times} for line in logged]
    return [parameter.detach() for parameter in loop.placement.plain.student.parameters()], lines


@pytest.mark.parametrize("name", ["akl", "taid", "matched"])
def test_a_halved_first_step_is_that_of_the_micro_batch_typed_bit_for_bit(
    name: str, student: Any, teacher: Any, rows: EncodedSet, caplog: pytest.LogCaptureFixture
) -> None:
    """With dropout, which both runs must draw alike."""
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1

    def loss() -> Any:
        return MatchedGradient(make_loss("jsd", beta=0.1)) if name == "matched" else make_loss(name)

    refusing = short_of_memory(copy.deepcopy(student), above=2)
    halved = make_loop(refusing, loss(), rows, teacher=teacher, batch=8, num_steps=3)
    typed = make_loop(copy.deepcopy(student), loss(), rows, teacher=teacher, batch=8, micro=2, num_steps=3)
    ours, expected = trained(halved), trained(typed)
    assert ours[1] == expected[1]
    assert all(torch.equal(a, b) for a, b in zip(ours[0], expected[0], strict=True))
    assert halved.micro_batch_size == 2
    assert [line.split("(")[0].strip() for line in caplog.messages] == [
        f"out of memory in the first step with {rows} rows at a time: it is done again with {half}, the same step; "
        f"next time type train.micro_batch_size={half}"
        for rows, half in ((8, 4), (4, 2))
    ]


def test_one_row_that_is_too_much_is_a_message_that_says_what_to_do(student: Any, rows: EncodedSet) -> None:
    loop = make_loop(short_of_memory(student, above=0), make_loss("sft"), rows)
    with pytest.raises(UserError, match=r"train\.micro_batch_size=1: .*20\.00 GiB.*gradient_checkpointing=true"):
        loop.step(0)


def test_after_the_first_step_nothing_is_halved(student: Any, rows: EncodedSet) -> None:
    loop = make_loop(student, make_loss("sft"), rows, micro=8)
    loop.step(0)
    short_of_memory(student, above=4)
    with pytest.raises(torch.OutOfMemoryError):
        loop.step(1)
    assert loop.micro_batch_size == 8


def test_a_micro_batch_that_was_cut_stays_cut_when_the_run_goes_on(student: Any, rows: EncodedSet) -> None:
    first = make_loop(short_of_memory(copy.deepcopy(student), above=2), make_loss("sft"), rows, num_steps=1)
    trained(first)
    calls: list[int] = []
    second = make_loop(short_of_memory(student, above=9, calls=calls), make_loss("sft"), rows, num_steps=2)
    second.load_state_dict(first.state_dict())
    second.step(1)
    assert max(calls) == 2
    other = make_loop(student, make_loss("sft"), rows, micro=3)
    other.load_state_dict(first.state_dict())
    assert other.micro_batch_size == 3, "what is typed now is meant"


def test_allocators_are_told_from_other_errors() -> None:
    """Of torch's CPU allocator and numpy, the real ones."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    with pytest.raises(MemoryError) as missed:
        np.empty(2**60, dtype=np.uint8)
    assert out_of_memory(missed.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory."))
