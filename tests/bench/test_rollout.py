"""What the contestants of `kdrun bench rollout` do in a step."""

import pytest
import torch

from kdrun.bench import rollout
from kdrun.bench.pair import Pair, PairInputs
from kdrun.data.examples import Example
from kdrun.rollouts.writer import StudentWriter
from tests.bench.test_step import Stop, TwoSteps


@pytest.fixture(scope="module")
def inputs() -> PairInputs:
    examples = [Example(f"Say {i}", "", ("word " * (3 + i % 7),)) for i in range(8)]
    return Pair(examples, None, 400, (1, 16, 2), (1, 16, 2), 100, 120, 4, "fp32", "cpu", 0).build()


@pytest.mark.parametrize(
    ("does", "written", "moves"),
    [({"fused": True, "parts": (True, True)}, [4, 4], True), ({"fused": False, "parts": (True, True)}, [8, 4, 4], True),
     ({"fused": False, "parts": (True, False)}, [4, 4], False), ({"fused": False, "parts": (False, True)}, [8], True)],
)  # fmt: skip
def test_each_writes_and_learns_what_its_name_says(
    does: dict, written: list, moves: bool, inputs: PairInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    students, texts = [], []
    make, write = PairInputs.student, StudentWriter.write
    monkeypatch.setattr(PairInputs, "student", lambda self: students.append(make(self)) or students[-1])
    monkeypatch.setattr(StudentWriter, "write", lambda *given: texts.append(write(*given)) or texts[-1])
    start = [p.detach().clone() for p in inputs.student().parameters()]
    with pytest.raises(Stop):
        rollout.run_ours((inputs, 1000, 5), TwoSteps(), **does)
    assert [len(one) for one in texts] == written
    assert all(length <= 5 for one in texts for length in one.scored_lengths)
    moved = any(not torch.equal(a, b) for a, b in zip(start, students[-1].parameters(), strict=True))
    assert moved == moves


def test_an_on_policy_step_is_held_against_its_parts(inputs: PairInputs) -> None:
    plan = rollout.plan(pair=inputs.pair, max_new_tokens=5, repetitions=2, threads=1)
    assert [(t.contestant, t.against, t.limit) for t in plan.targets] == [(rollout.ON_POLICY, rollout.APART, 1.3)]
    assert [c.name for c in plan.cases[0].contestants()] == [
        rollout.ON_POLICY, rollout.APART, rollout.WRITING, rollout.OFF_POLICY, rollout.TRL,
    ]  # fmt: skip
