"""A compiled body and loss train as the plain ones do, and what is compiled anew is counted."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from kdrun.data.encoding import EncodedSet
from kdrun.losses import LOSSES, MatchedGradient, make_loss
from kdrun.losses.interface import nats_and_gradient
from kdrun.models.adapters import add_adapter
from kdrun.teachers.live import LiveTeacher
from kdrun.training.compile import Compiled
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement

from .conftest import END, encoded, tiny

NUM_STEPS = 3


def weights_after(rows: EncodedSet, compiled: Compiled | None) -> tuple[list[float], torch.Tensor]:
    """The nats of every step, and the adapters after the last."""
    student, teacher = tiny(1), tiny(2, width=16)
    add_adapter(student, r=2, alpha=8, dropout=0.0, targets=None, seed=0)
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    settings = LoopSettings(
        num_steps=NUM_STEPS, batch_size=8, micro_batch_size=4, seed=0, clip_norm=None, learning_rate=lambda _: 0.1,
        log_every=1,
    )  # fmt: skip
    objective = StudentObjective(student, make_loss("akl"), kd_ratio=0.5, compiled=compiled)
    placement = Placement(objective, lambda: torch.optim.SGD(trained, lr=0.1), Accelerator(cpu=True))
    loop = Loop(placement, rows, settings, teacher=LiveTeacher(teacher, rows=None), pad_id=END)
    nats = [loop.step(step).total for step in range(NUM_STEPS)]
    return nats, torch.cat([weight.detach().flatten() for weight in trained])


def test_three_steps_are_those_of_the_plain_body_and_one_graph_serves_all_lengths() -> None:
    """Traced with its backward pass, run as torch operations: inductor's C++ takes 30 s of a core, and gave 1e-9."""
    rows, compiled = encoded(24), Compiled("aot_eager")
    nats, expected = weights_after(rows, None)
    found, weights = weights_after(rows, compiled)
    assert found == pytest.approx(nats, rel=1e-9)
    assert float((weights - expected).norm() / expected.norm()) < 1e-9
    assert compiled.body.recompilations == 0, "micro-batches of several lengths"


@pytest.mark.parametrize("name", [*LOSSES, "matched"])
def test_a_compiled_loss_gives_the_nats_and_the_gradient_of_the_plain_one(name: str) -> None:
    """Rows of several numbers, with the same graphs."""
    torch.manual_seed(0)
    logits, compiled = torch.randn(2, 9, 50, dtype=torch.float64) * 3, Compiled("eager")
    target_N = torch.arange(9)
    loss = MatchedGradient(make_loss("jsd")) if name == "matched" else make_loss(name)
    for rows in (slice(0, 9), slice(2, 6), slice(4, 9)):
        log_q_NV, log_p_NV = (one[rows].log_softmax(-1) for one in logits)
        found, expected = (
            nats_and_gradient(
                loss, log_q_NV, log_p_NV if loss.needs_teacher else None, target_N[rows], with_gradient=with_gradient
            )
            for with_gradient in (compiled.with_gradient, None)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert compiled.recompilations == 0


def test_a_graph_that_no_longer_fits_is_counted(student: Any) -> None:
    """torch specialises on a batch of one row, whatever is said of dynamic shapes."""
    compiled = Compiled("eager")
    assert compiled.recompilations == 0
    for num_rows, count in ((4, 0), (5, 0), (1, 1), (1, 1), (7, 1)):
        compiled.body(student, torch.ones(num_rows, 6, dtype=torch.long))
        assert compiled.recompilations == count
