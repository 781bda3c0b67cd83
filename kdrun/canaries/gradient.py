"""What one optimiser step does: the training's own loop against a textbook gradient, and split in every way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from kdrun.canaries.finding import Finding, none_of, within
from kdrun.canaries.patient import Patient, own_logits, own_targets
from kdrun.losses import Loss, make_loss
from kdrun.models.heads import body_of
from kdrun.teachers.live import LiveTeacher
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement

KD_RATIO = 0.5  # of the textbook's objective: both parts count
SPLIT = 1e-6  # of the gradient's norm: float32 sums in another order
TEXTBOOK = 1e-4
ONCE = "a step's gradient is the sum over its tokens, divided once by their number: mend kdrun/training/loop.py"


def scored_tokens_are_learned_from(patient: Patient) -> Finding:
    """The hidden states that have a gradient: those before each response token and the end, none of a prompt."""
    states: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        states.append(output.last_hidden_state)

    batch = patient.batch()
    loss, teacher = _textbook(patient)
    hook = body_of(patient.student).register_forward_hook(keep)
    try:
        total = StudentObjective(patient.student, loss, rows=patient.shared, kd_ratio=KD_RATIO).eval()(batch, teacher)[
            0
        ]
    finally:
        hook.remove()
    rows, faults = iter(patient.in_order(batch)), []
    for gradient_BTD in torch.autograd.grad(total, states):
        for touched_T in (gradient_BTD.abs().sum(-1) > 0).tolist():
            row = next(rows)
            wanted = [row.num_prompt - 1 <= t <= len(row.ids) - 2 for t in range(len(touched_T))]
            if touched_T != wanted:
                faults.append(f"a row learns at {sum(touched_T)} positions, its response and end are {sum(wanted)}")
    return none_of(
        "learned tokens", faults, len(patient.hand), of="rows learned from at response tokens and end only",
        remedy="a token is lost, or a prompt is learned: mend kdrun/data/scored.py",
    )  # fmt: skip


def step_is_the_textbooks(patient: Patient) -> Finding:
    """Gradient of one step against autograd through the model's own logits: the mean over all scored tokens."""
    loss, teacher = _textbook(patient)
    found = _gradient(_loop(patient, loss, teacher, micro=None, kd_ratio=KD_RATIO))
    rows, parameters = patient.in_order(patient.batch()), _trained(patient.student)
    logits_NV = own_logits(patient.student, rows, shared=patient.shared)
    value = cross_entropy(logits_NV, own_targets(rows, patient.device))
    if teacher is not None:
        with torch.no_grad():
            log_p_NV = own_logits(teacher.model, rows, shared=patient.shared).log_softmax(-1)
        divergence = kl_div(logits_NV.log_softmax(-1), log_p_NV, log_target=True, reduction="batchmean")
        value = (1 - KD_RATIO) * value + KD_RATIO * divergence
    expected = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    what = "0.5 cross-entropy + 0.5 forward KL" if teacher is not None else "cross-entropy"
    return within(
        "gradient", _difference(found, expected), TEXTBOOK + patient.rounding,
        measured=f"a step's gradient of {what} against autograd by the textbook, relative", remedy=ONCE,
    )  # fmt: skip


def micro_batches_agree(patient: Patient) -> Finding:
    """Gradient of one step of all rows at once, in micro-batches of half, and one by one."""
    size = len(patient.numbers)
    whole, *others = (_gradient(_loop(patient, micro=micro)) for micro in (size, -(-size // 2), 1))
    return within(
        "micro-batches", float(np.max([_difference(other, whole) for other in others])), SPLIT + patient.rounding,
        measured=f"gradient in micro-batches of {-(-size // 2)} and 1 against all {size} rows at once, relative",
        remedy=ONCE,
    )  # fmt: skip


def processes_agree(patient: Patient) -> Finding:
    """Gradient of one step on one process, and with its rows dealt to two (that take their turns here)."""
    whole = _gradient(_loop(patient))
    said: list[list[Tensor]] = [[], []]
    for _turn in ("each says its share", "each has the sums of all"):
        parts = [_gradient(_loop(patient, accelerator=_Rank(patient.device, rank, said))) for rank in range(2)]
    mean = [sum(pair) / 2 for pair in zip(*parts, strict=True)]  # what a distributed wrapper makes of them
    return within(
        "processes", _difference(mean, whole), SPLIT + patient.rounding,
        measured="gradient of rows dealt to two processes against one, relative", remedy=ONCE,
    )  # fmt: skip


def taid_moves_once_a_step(patient: Patient) -> Finding:
    """TAID's t after each of three steps, in one micro-batch and one by one: the same, and another after each."""
    runs = []
    for micro in (None, 1):
        loss, seen = make_loss("taid", alpha=0.5), list[float]()
        loop = _loop(patient, loss, micro=micro, num_steps=3)

        def note(_step: int, values: Any, into: list[float] = seen) -> None:
            into.append(values["t"])

        loop.run(start_step=0, on_step=note)
        runs.append(seen)
    worst = max(abs(a - b) for a, b in zip(*runs, strict=True))
    said = f"t after three steps: {', '.join(f'{t:.4g}' for t in runs[0])}; one by one it differs by {worst:.2g}"
    moves = len(set(runs[0])) == len(runs[0]) and worst <= SPLIT + patient.rounding
    return Finding("taid", "ok" if moves else "FAIL", said, "the loss is observed once an optimiser step: mend "
                   "kdrun/training/loop.py", worst)  # fmt: skip


# -- one step ----------------------------------------------------------------------------------------------------------


class _Recorder(torch.optim.SGD):
    """Keeps a step's gradient, and does not take the step."""

    gradient: tuple[Tensor, ...] = ()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        self.gradient = tuple(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)


class _Still(StudentObjective):
    """The objective with a student that stays in evaluation mode: dropout would hide what is compared."""

    def train(self, mode: bool = True) -> _Still:
        return super().train(False)


class _Rank:
    """Stands for accelerate on one of several processes that take their turns in one.

    In its first turn each says its share of every sum and is answered with that; in the second, with the sum of all.
    """

    def __init__(self, device: torch.device, process_index: int, said: list[list[Tensor]]) -> None:
        self.device, self.process_index, self.said, self.num_asked = device, process_index, said, 0
        self.num_processes = len(said)

    def prepare(self, *parts: Any) -> tuple[Any, ...]:
        return parts

    def no_sync(self, _module: Any) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def reduce(self, share: Tensor, _how: str) -> Tensor:
        mine, number = self.said[self.process_index], self.num_asked
        self.num_asked += 1
        if number < len(mine):
            return torch.stack([shares[number] for shares in self.said]).sum(0)
        mine.append(share)
        return share

    def clip_grad_norm_(self, parameters: Iterable[Tensor], limit: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)


def _textbook(patient: Patient) -> tuple[Loss, LiveTeacher | None]:
    """Forward KL where there is a teacher whose model can be asked, else the cross-entropy alone."""
    if isinstance(patient.teacher, LiveTeacher):
        return make_loss("fkl"), patient.teacher
    return make_loss("sft"), None


def _loop(
    patient: Patient, loss: Loss | None = None, teacher: Any = None, *, micro: int | None = None, num_steps: int = 1,
    accelerator: Any = None, **mix: Any,
) -> Loop:  # fmt: skip
    """The training's loop on the patient's rows, a step being all of them; by default its own loss and teacher."""
    own = loss is None
    loss = copy.deepcopy(patient.loss) if loss is None else loss
    teacher = patient.teacher if teacher is None and loss.needs_teacher else teacher
    objective = _Still(patient.student, loss, rows=patient.shared, **(patient.mix if own else {}) | mix)
    rows = patient.encoded.subset(patient.numbers)
    settings = LoopSettings(
        num_steps=num_steps, batch_size=len(rows), micro_batch_size=micro, seed=0, clip_norm=None,
        learning_rate=_no_rate, log_every=1,
    )  # fmt: skip
    placement = Placement(
        objective, lambda: _Recorder(_trained(patient.student), lr=0.0), accelerator or _accelerator(patient.device)
    )
    return Loop(placement, rows, settings, teacher=teacher, pad_id=patient.tokenizer.pad_token_id)


def _no_rate(_step: int) -> float:
    return 0.0


def _accelerator(device: torch.device) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of an earlier one would stay
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no")


def _gradient(loop: Loop) -> tuple[Tensor, ...]:
    loop.step(0)
    optimizer = loop.placement.optimizer
    recorder: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return recorder.gradient


def _trained(model: Any) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    off = [a - b for a, b in zip(found, expected, strict=True)]
    off_norm, norm = (math.sqrt(sum(float(x.double().square().sum()) for x in part)) for part in (off, expected))
    return off_norm / norm if norm else float(off_norm > 0)
