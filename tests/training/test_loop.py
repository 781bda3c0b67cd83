"""The canaries of the loop: alignment, one division, no update on a non-finite loss, states that move once a step."""

import copy
import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.data.batch import Batch, Group, make_batch
from kdrun.data.encoding import EncodedSet
from kdrun.data.scored import collate
from kdrun.errors import UserError
from kdrun.losses import LOSSES, MatchedGradient, make_loss
from kdrun.teachers.live import LiveTeacher
from kdrun.training.loop import NonFiniteLoss
from kdrun.training.objective import StudentObjective

from .conftest import END, VOCABULARY, make_loop, tiny, update_of

WITH_TEACHER = sorted(set(LOSSES) - {"sft"})


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(name: str, student: Any, rows: EncodedSet) -> None:
    loop = make_loop(student, make_loss(name), rows, teacher=copy.deepcopy(student), kd_ratio=1.0)
    sums = loop.step(0, probe=True)
    assert abs(sums.divergence) / sums.num_tokens < 1e-6
    assert sums.grad_norm < 1e-6 or name in ("tvd", "gap"), "abs has a corner there"
    assert sums.probed["fkl"] == pytest.approx(0, abs=1e-6)
    assert sums.probed["top1_agreement"] == 1


@pytest.mark.parametrize("name", ["fkl", "rkl", "akl", "jsd"])
def test_a_teacher_shifted_by_one_token_raises_the_loss(name: str, student: Any, rows: EncodedSet) -> None:
    class Shifted(LiveTeacher):
        def hidden(self, batch: Batch) -> torch.Tensor:
            return super().hidden(replace(batch, groups=tuple(Group(ids, index - 1) for ids, index in batch.groups)))

    loop = make_loop(student, make_loss(name), rows, kd_ratio=1.0)
    loop.teacher = Shifted(copy.deepcopy(student), rows=None)
    sums = loop.step(0)
    assert sums.divergence / sums.num_tokens > 1e-3


def test_every_response_token_and_eos_is_learned_from_and_no_prompt_token(student: Any, rows: EncodedSet) -> None:
    """Gradient of the objective with respect to hidden states: at P-1 .. L-2 of each row and nowhere else."""
    batch = make_batch(rows, range(6), pad_id=END, device="cpu")
    assert len(batch.groups) == 1
    seen: dict[str, torch.Tensor] = {}

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen["hidden"] = output

    hook = student.transformer.ln_f.register_forward_hook(keep)
    total, *_ = StudentObjective(student, make_loss("fkl"), kd_ratio=0.5)(batch, LiveTeacher(tiny(5), rows=None))
    total.backward()
    hook.remove()
    touched = seen["hidden"].grad.abs().sum(-1) > 0
    for row, number in zip(touched, batch.rows, strict=True):
        row_ids, prompt = rows.row(number)
        expected = [prompt - 1 <= t <= len(row_ids) - 2 for t in range(touched.shape[1])]
        assert row.tolist() == expected


@pytest.mark.parametrize("name", ["sft", "fkl", "akl", "taid"])
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(
    name: str, student: Any, teacher: Any, rows: EncodedSet
) -> None:
    given = None if name == "sft" else teacher
    updates = [
        update_of(lambda s, m=micro: make_loop(s, make_loss(name), rows, teacher=given, micro=m), student)
        for micro in (8, 4, 2, 1, None, 3)
    ]
    for update in updates[1:]:
        for key, value in update.items():
            torch.testing.assert_close(value, updates[0][key], rtol=1e-6, atol=1e-9)


def test_the_gradient_is_the_mean_over_all_scored_tokens_of_the_step(student: Any, rows: EncodedSet) -> None:
    """Independent: transformers' own logits, one cross-entropy over the concatenated scored tokens."""
    loop = make_loop(copy.deepcopy(student), make_loss("sft"), rows, micro=2)
    ids, labels = collate([rows.row(int(i)) for i in loop.order.rows(0)], END)
    logits = student(input_ids=ids).logits[:, :-1]
    targets = labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[targets != -100], targets[targets != -100])
    expected.backward()
    sums = loop.step(0)
    assert sums.total / sums.num_tokens == pytest.approx(expected.item(), rel=1e-6)
    trained = loop.placement.objective.student
    for before, after in zip(student.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-6, atol=1e-9)


def test_a_run_makes_exactly_its_steps_and_reports_each_count_once(student: Any, rows: EncodedSet) -> None:
    loop = make_loop(student, make_loss("sft"), rows, num_steps=7, micro=3)
    counted: list[int] = []
    loop.run(start_step=0, on_step=lambda step, metrics: counted.append(step))
    assert counted == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_non_finite_loss_stops_before_the_update(where: str, student: Any, teacher: Any, rows: EncodedSet) -> None:
    with torch.no_grad():
        (student if where == "student" else teacher).transformer.ln_f.weight[0] = math.nan
    before = [parameter.clone() for parameter in student.parameters()]
    loop = make_loop(student, make_loss("fkl"), rows, teacher=teacher)
    expected = (NonFiniteLoss, "step 1") if where == "student" else (UserError, "pair.teacher: its logits are NaN")
    with pytest.raises(expected[0], match=expected[1]):
        loop.step(0)
    for old, new in zip(before, student.parameters(), strict=True):
        torch.testing.assert_close(old, new, equal_nan=True)


def test_taids_t_moves_once_an_optimiser_step_whatever_the_micro_batches(
    student: Any, teacher: Any, rows: EncodedSet
) -> None:
    states = []
    for micro in (8, 1):
        loss = make_loss("taid", alpha=0.5)
        loop = make_loop(copy.deepcopy(student), loss, rows, teacher=teacher, micro=micro, num_steps=3)
        logged: list[dict] = []
        loop.run(start_step=0, on_step=lambda step, metrics, into=logged: into.append(metrics))
        states.append((loss.state_dict(), [metrics["t"] for metrics in logged]))
    assert states[0][1] == pytest.approx(states[1][1], rel=1e-6)
    assert len(set(states[0][1])) == 3, "t moves"


def matched_run(student: Any, rows: EncodedSet, *, given: Any, steps: range = range(30), **settings: Any) -> list[dict]:
    """Trains the student in place; the metrics of each step."""
    loss = MatchedGradient(make_loss("jsd", beta=0.1))
    if "state" in settings:
        loss.load_state_dict(settings.pop("state"))
    loop = make_loop(student, loss, rows, teacher=given, num_steps=steps.stop, **settings)
    logged: list[dict] = []
    loop.run(
        start_step=steps.start, on_step=lambda step, metrics: logged.append(metrics | {"state": loss.state_dict()})
    )
    return logged


def test_a_matched_gradient_does_not_depend_on_the_micro_batches(student: Any, teacher: Any, rows: EncodedSet) -> None:
    """Three steps: the preview, the averages and the update."""
    ends = []
    for micro in (8, 4, 1, 3):
        trained = copy.deepcopy(student)
        logged = matched_run(trained, rows, given=teacher, steps=range(3), micro=micro)
        ends.append((list(trained.parameters()), [metrics["grad_factor"] for metrics in logged]))
    for parameters, factors in ends[1:]:
        assert factors == pytest.approx(ends[0][1], rel=1e-9)
        for value, expected in zip(parameters, ends[0][0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_the_first_step_matches_forward_kl_exactly_and_later_ones_nearly(
    student: Any, teacher: Any, rows: EncodedSet
) -> None:
    """With dropout: the preview draws what the step draws, and takes nothing from the numbers after it."""
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    torch.manual_seed(3)
    matched = [metrics["grad_match"] for metrics in matched_run(student, rows, given=teacher)]
    drawn = torch.get_rng_state()
    assert matched[0] == pytest.approx(1, rel=1e-6)
    assert min(matched) > 0.8 and max(matched) < 1.2, matched
    torch.manual_seed(3)
    make_loop(student, make_loss("jsd"), rows, teacher=teacher, num_steps=30).run(start_step=0, on_step=lambda *_: None)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_resumed_run_with_matched_gradients_is_the_uninterrupted_one(
    student: Any, teacher: Any, rows: EncodedSet
) -> None:
    resumed = copy.deepcopy(student)
    whole = matched_run(student, rows, given=teacher, steps=range(6))
    half = matched_run(resumed, rows, given=teacher, steps=range(3))
    rest = matched_run(resumed, rows, given=teacher, steps=range(3, 6), state=json.loads(json.dumps(half[-1]["state"])))
    assert [m["grad_factor"] for m in whole] == [m["grad_factor"] for m in half + rest]
    for ours, expected in zip(resumed.parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_a_run_that_goes_on_between_two_reports_reports_the_same(student: Any, rows: EncodedSet) -> None:
    """Means over three steps, the first of which another process made."""
    reports: list[list[dict]] = []
    for parts in ([range(6)], [range(1), range(1, 4), range(4, 6)]):
        trained, state, logged = copy.deepcopy(student), None, list[dict]()
        for steps in parts:
            loop = make_loop(trained, make_loss("sft"), rows)
            loop.settings = replace(loop.settings, log_every=3, num_steps=steps.stop if steps.stop == 6 else 99)
            if state is not None:
                loop.load_state_dict(json.loads(json.dumps(state)))
            for step in steps:
                metrics = loop._reported_step(step)
                logged += [metrics] if metrics is not None else []
            state = loop.state_dict()
        reports.append([{name: line[name] for name in ("loss", "cross_entropy", "grad_norm", "lr")} for line in logged])
    assert reports[0] == reports[1] and len(reports[0]) == 2


def test_clipping_bounds_the_norm_of_the_whole_steps_gradient(student: Any, rows: EncodedSet) -> None:
    free = update_of(lambda s: make_loop(s, make_loss("sft"), rows), student)
    norm = math.sqrt(sum(float((value / 0.1).pow(2).sum()) for value in free.values()))
    clipped = update_of(lambda s: make_loop(s, make_loss("sft"), rows, clip=norm / 4), student)
    for key, value in clipped.items():
        torch.testing.assert_close(value, free[key] / 4, rtol=1e-4, atol=1e-9)


def test_training_lowers_the_divergence_it_trains(student: Any, teacher: Any, rows: EncodedSet) -> None:
    loop = make_loop(student, make_loss("fkl"), rows, teacher=teacher, kd_ratio=1.0, num_steps=60, lr=0.5)
    values: list[float] = []
    loop.run(start_step=0, on_step=lambda step, metrics: values.append(metrics["fkl"]))
    assert np.mean(values[-5:]) < 0.7 * np.mean(values[:5])


def test_only_scored_positions_meet_the_vocabulary(student: Any, rows: EncodedSet) -> None:
    """No tensor of B x T x V elements is made: prompt logits are not computed and thrown away."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY,):
                    self.numel = max(self.numel, tensor.numel())
            return out

    batch = make_batch(rows, range(8), pad_id=END, device="cpu")
    with Largest() as largest:
        StudentObjective(student, make_loss("fkl"))(batch, LiveTeacher(tiny(4), rows=None))[0].backward()
    assert batch.num_scored * VOCABULARY < batch.num_positions * VOCABULARY
    assert 0 < largest.numel <= batch.num_scored * VOCABULARY


def test_the_teachers_share_of_the_time_is_that_of_its_forward(student: Any, teacher: Any, rows: EncodedSet) -> None:
    """Without a teacher there is no share, and none is measured unasked."""

    class Slow(LiveTeacher):
        def hidden(self, batch: Batch) -> torch.Tensor:
            time.sleep(0.05)
            return super().hidden(batch)

    loop = make_loop(student, make_loss("fkl"), rows, teacher=teacher)
    assert loop.step(0).teacher_share is None
    assert 0 < loop.step(1, timed=True).teacher_share < 1
    loop.teacher = Slow(teacher, rows=None)
    assert 0 < loop.step(2, timed=True).teacher_share < 1
    assert loop.placement.plain.teacher_s >= 0.05, "a sleep is never shorter"
    assert make_loop(student, make_loss("sft"), rows).step(0, timed=True).teacher_share is None
