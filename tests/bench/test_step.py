"""kdrun's loop and TRL's trainer do the same step on the same rows."""

import pytest
import torch

from kdrun.bench import step
from kdrun.bench.contest import is_installed
from kdrun.bench.pair import Pair, PairInputs
from kdrun.data.examples import Example


class Stop(Exception):
    """Two steps are done."""


class TwoSteps:
    """A lane whose loop is stopped after two steps."""

    def __init__(self) -> None:
        self.left = 2

    def pause(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


@pytest.fixture(scope="module")
def inputs() -> PairInputs:
    examples = [Example(f"Say {i}", "", ("word " * (3 + i % 7),)) for i in range(26)]
    return Pair(examples, None, 400, (1, 16, 2), (2, 32, 2), 120, 160, 4, "fp32", "cpu", 0).build()


def weights_after_two_steps(run, inputs: PairInputs, monkeypatch) -> torch.Tensor:
    made = []
    real = PairInputs.student
    monkeypatch.setattr(PairInputs, "student", lambda self: made.append(real(self)) or made[-1])
    with pytest.raises(Stop):
        run((inputs, 1000), TwoSteps())  # of so many steps that no schedule is felt in two
    return torch.cat([parameter.detach().flatten() for parameter in made[0].parameters()])


def test_rows_are_a_whole_number_of_batches(inputs: PairInputs) -> None:
    assert len(inputs.rows) == 24


def test_trl_makes_the_same_two_updates(inputs: PairInputs, monkeypatch) -> None:
    if not is_installed("trl"):
        pytest.skip("trl is not installed (make bench)")
    start = torch.cat([parameter.detach().flatten() for parameter in inputs.student().parameters()])
    ours = weights_after_two_steps(step.run_ours, inputs, monkeypatch)
    theirs = weights_after_two_steps(step.run_trl, inputs, monkeypatch)
    moved = (ours - start).abs()
    assert float(moved.max()) > 0.5 * step.LEARNING_RATE
    # Adam's first updates are the learning rate times the sign of the gradient: where that is next to nothing, rounding
    # chooses the sign
    same = (ours - theirs).abs() < 0.02 * step.LEARNING_RATE
    assert float(same.float().mean()) > 0.99


def test_each_step_is_counted_in_the_same_tokens(inputs: PairInputs) -> None:
    work = step.start(step.run_ours, step.StepCase(inputs.pair, 3, 1), inputs)
    rows = [inputs.order().rows(number) for number in range(3)]
    total = [int(inputs.rows.lengths[chosen].sum()) for chosen in rows]
    prompts = [int(inputs.rows.prompt_lengths[chosen].sum()) for chosen in rows]
    found = work.figures([2.0, 2.0])  # seconds of the second and third step; the first was the warm-up
    assert found["tokens_per_s"] == (total[1] + total[2]) / 4
    assert found["scored_tokens_per_s"] == (total[1] + total[2] - prompts[1] - prompts[2]) / 4
