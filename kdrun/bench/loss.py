"""kdrun bench loss: value and gradient of every loss, from logits in memory.

Shapes: N rows, V vocabulary. The student's logits are the teacher's plus noise, so that both agree in part, as in
training: teacher = std x, student = teacher + noise std y, with x and y standard normal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdrun.bench.contest import Contestant, Kind, Plan, Target, Work
from kdrun.bench.textbook import GKD_BETA, TEXTBOOK
from kdrun.losses import LOSSES, make_loss

WEIGHED = ("fkl", "akl", "jsd", "ab")  # with their peers; ab stands for the losses without a closed form
Logits = tuple[Tensor, Tensor]  # student_NV (a leaf with gradient), teacher_NV


@dataclass(frozen=True)
class LossCase:
    """N x V logits of one spread; `losses` are those of ours, textbook versions and peers that take part.

    weighed: the losses whose memory is measured; a process each takes seconds, and the closed forms are all alike.
    """

    rows: int
    vocabulary: int
    std: float
    noise: float
    device: str
    seed: int
    losses: tuple[str, ...]
    weighed: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.rows} x {self.vocabulary:,}, teacher logits of std {self.std:g}"

    @property
    def sizes(self) -> dict[str, float]:
        return {"rows": self.rows, "vocabulary": self.vocabulary, "std": self.std}

    def build(self) -> Logits:
        """Student's and teacher's logits in float32."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        normal = partial(torch.randn, self.rows, self.vocabulary, generator=generator, device=torch.device(self.device))
        teacher_NV = normal() * self.std
        return (teacher_NV + normal() * (self.noise * self.std)).requires_grad_(), teacher_NV

    def contestants(self) -> list[Contestant]:
        """Ours by every name, the textbook's where there is one, TRL's; Liger's kernels on a GPU."""
        found = [Contestant("copy", run_copy, "floor", weighed=False)]

        def add(who: str, name: str, start: Callable[[Logits], Work], kind: Kind, package: str | None = None) -> None:
            found.append(Contestant(f"{who} {name}", start, kind, package, weighed=name in self.weighed))

        for name in self.losses:
            add("ours", name, partial(run_ours, name), "ours")
        for name in self.losses:
            if name in TEXTBOOK:
                add("textbook", name, partial(run_textbook, name), "textbook")
        betas = {name: beta for name, beta in GKD_BETA.items() if name in self.losses}
        for name, beta in betas.items():
            add("TRL", name, partial(run_trl, beta), "peer", "trl")
        for name, beta in betas.items():
            kernel = partial(run_liger_kernel, beta)
            found.append(Contestant(f"Liger kernel {name}", kernel, "peer", "liger_kernel", "cuda"))
        return found


def plan(*, stds: Sequence[float], curve_rows: int, curve: Sequence[int], **values: Any) -> Plan:
    """Every loss at one shape and each spread; forward KL and AKL over vocabularies of `curve` with curve_rows rows.

    Args:
        values: the rows, vocabulary, noise, device and seed of a LossCase.
    """
    every, drawn = tuple(name for name, loss in LOSSES.items() if loss.needs_teacher), ("fkl", "akl")
    case = LossCase(**values, std=stds[0], losses=every, weighed=WEIGHED)
    return Plan(
        [case, *(replace(case, std=std, weighed=()) for std in stds[1:])],
        reference="ours fkl",
        targets=[
            Target("ours akl", "ours fkl", 1.2 if case.device.startswith("cuda") else 1.5),
            Target("textbook akl", "ours akl", 6.0, at_least=True),
            Target("ours fkl", "TRL fkl", 1.0),
        ],
        memory_means="above the logits",
        curve=[replace(case, rows=curve_rows, vocabulary=size, losses=drawn, weighed=drawn) for size in curve],
        axis="vocabulary (entries)",
        floor="copy",
        floor_units=1.5,  # two tensors read and one written, where the copy reads one and writes one
        floor_means="share of copy speed",
    )


def run_ours(name: str, logits: Logits) -> Work:
    """kdrun.losses: nats per token and their gradient in the student's logits."""
    loss = make_loss(name)
    return partial(_value_and_gradient, lambda student_NV, teacher_NV: loss(student_NV, teacher_NV).sum(), logits)


def run_textbook(name: str, logits: Logits) -> Work:
    """kdrun.bench.textbook through autograd."""
    loss = TEXTBOOK[name]
    return partial(_value_and_gradient, lambda student_NV, teacher_NV: loss(student_NV, teacher_NV).sum(), logits)


def run_trl(beta: float, logits: Logits) -> Work:
    """trl GKDTrainer.generalized_jsd_loss, which is a static method on logits; summed as ours."""
    from trl.experimental.gkd import GKDTrainer

    loss = partial(GKDTrainer.generalized_jsd_loss, beta=beta, reduction="sum")
    return partial(_value_and_gradient, loss, logits)


def run_liger_kernel(beta: float, logits: Logits) -> Work:
    """Liger's Triton kernel of the generalised Jensen-Shannon divergence, which takes log-probabilities."""
    from liger_kernel.transformers import LigerJSD

    kernel = LigerJSD(beta=beta)  # a mean over the rows

    def loss(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return kernel(torch.log_softmax(student_NV, -1), torch.log_softmax(teacher_NV, -1)) * len(student_NV)

    return partial(_value_and_gradient, loss, logits)


def run_copy(logits: Logits) -> Work:
    """One copy of the logits into memory that is there: N V read, N V written. A loss reads two and writes one."""
    student_NV, teacher_NV = logits[0].detach(), logits[1]
    into_NV = torch.empty_like(student_NV)
    return lambda: into_NV.copy_(teacher_NV)


def _value_and_gradient(loss: Any, logits: Logits) -> None:
    student_NV, teacher_NV = logits
    torch.autograd.grad(loss(student_NV, teacher_NV), student_NV)
