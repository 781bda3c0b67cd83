"""kdrun bench objective: from hidden states and heads to the loss and its gradients, over the whole vocabulary.

Shapes: N tokens, V vocabulary, D student width, E teacher width. Every contestant gets the same hidden states and heads
in the same precision, and returns the gradients of the mean over the tokens in the student's hidden states and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdrun.bench.contest import Contestant, Plan, Target, Work
from kdrun.bench.textbook import GKD_BETA, TEXTBOOK
from kdrun.losses import chunked_objective, make_loss
from kdrun.native import fast_float32_products
from kdrun.native.products import onednn_is_better
from kdrun.training.compile import Compiled

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FLOOR = "floor: four products"
FLOOR_FAST = "floor, by oneDNN"  # on the processors where kdrun has torch send its products there


@dataclass(frozen=True)
class Sides:
    """Hidden states and heads of both models; those of the student are leaves with gradient."""

    student_hidden_ND: Tensor
    student_weight_VD: Tensor
    teacher_hidden_NE: Tensor
    teacher_weight_VE: Tensor
    target_N: Tensor

    @property
    def watched(self) -> tuple[Tensor, Tensor]:
        """What gradients are taken in."""
        return self.student_hidden_ND, self.student_weight_VD


@dataclass(frozen=True)
class ObjectiveCase:
    """N tokens; `losses` of ours, `peer_losses` of the plain path and the peers."""

    tokens: int
    vocabulary: int
    student_width: int
    teacher_width: int
    precision: str
    device: str
    seed: int
    losses: tuple[str, ...]
    peer_losses: tuple[str, ...]
    compiled: bool  # whether our losses and Liger take part compiled, too (half a minute for each shape)

    @property
    def label(self) -> str:
        return (
            f"{self.tokens:,} tokens, vocabulary {self.vocabulary:,}, widths {self.student_width} and "
            f"{self.teacher_width}, {self.precision}"
        )

    @property
    def sizes(self) -> dict[str, float]:
        return {
            "tokens": self.tokens, "vocabulary": self.vocabulary, "student_width": self.student_width,
            "teacher_width": self.teacher_width,
        }  # fmt: skip

    def build(self) -> Sides:
        """Standard normal hidden states; heads scaled so that logits have std 1.5 (a fresh GPT-2's are below)."""
        generator = torch.Generator(self.device).manual_seed(self.seed)

        def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(rows, columns, generator=generator, device=torch.device(self.device)).mul_(scale)
            return values.to(DTYPES[self.precision])

        return Sides(
            normal(self.tokens, self.student_width).requires_grad_(),
            normal(self.vocabulary, self.student_width, 1.5 * self.student_width**-0.5).requires_grad_(),
            normal(self.tokens, self.teacher_width),
            normal(self.vocabulary, self.teacher_width, 1.5 * self.teacher_width**-0.5),
            torch.randint(self.vocabulary, (self.tokens,), generator=generator, device=torch.device(self.device)),
        )

    def contestants(self) -> list[Contestant]:
        """The floors, ours, the plain path and the peers."""
        found = [Contestant(FLOOR, run_floor, "floor", weighed=False)]
        if self.device == "cpu" and self.precision == "fp32" and onednn_is_better():
            found.append(Contestant(FLOOR_FAST, run_fast_floor, "floor", weighed=False))
        for name in self.losses:
            found.append(Contestant(f"ours {name}", partial(run_ours, name), "ours"))
            if self.compiled and make_loss(name).traceable:
                found.append(Contestant(f"ours {name}, compiled", partial(run_ours, name, compiled=True), "ours"))
        for name in self.peer_losses:
            found.append(Contestant(f"plain {name}", partial(run_plain, name), "textbook"))
            if (beta := GKD_BETA.get(name)) is None:
                continue
            for compiled in (True, False) if self.compiled else (False,):
                liger = f"Liger {name}{', compiled' if compiled else ''}"
                found.append(Contestant(liger, partial(run_liger, beta, compiled), "peer", "liger_kernel"))
            found.append(Contestant(f"TRL {name}", partial(run_trl, beta), "peer", "trl"))
        return found


def plan(*, curve: Sequence[int], **values: Any) -> Plan:
    """All contestants of one case; one loss of each over the numbers of tokens in `curve`.

    Args:
        values: the fields of ObjectiveCase.
    """
    case = ObjectiveCase(**values)
    drawn, drawn_peers = (*case.peer_losses, *case.losses)[:1], case.peer_losses[:1]
    further = [replace(case, tokens=size, losses=drawn, peer_losses=drawn_peers, compiled=False) for size in curve]
    targets = [Target(f"ours {name}", floor, 1.25) for name in case.losses for floor in (FLOOR, FLOOR_FAST)]
    for name in case.peer_losses:
        ours = f"ours {name}"
        targets += [
            Target(ours, f"Liger {name}, compiled", 1.0),
            Target(ours, f"Liger {name}", 0.5),
            Target(ours, f"TRL {name}", 0.5),
            Target(ours, f"Liger {name}, compiled", 0.6, "memory"),
            Target(ours, f"Liger {name}", 0.6, "memory"),
        ]
    # flat: the gradient of the hidden states grows (3 kB a token), nothing of the vocabulary's size does
    targets += [Target(f"ours {name}", f"ours {name} @ {further[0].label}", 1.2, "memory") for name in drawn if further]
    return Plan(
        [case],
        reference=FLOOR,
        targets=targets,
        memory_means="above hidden states and heads",
        curve=further,
        axis="tokens",
        floor=FLOOR,
    )


def run_floor(sides: Sides) -> Work:
    """The four products that no exact objective can do without, into memory that is there.

    Student's logits, teacher's logits, and the student's two gradients, from a gradient in the logits that costs
    nothing (the student's logits stand in for it).
    """
    hidden_ND, weight_VD = (tensor.detach() for tensor in sides.watched)
    student_NV = torch.empty(len(hidden_ND), len(weight_VD), dtype=hidden_ND.dtype, device=hidden_ND.device)
    teacher_NV, grad_hidden_ND = torch.empty_like(student_NV), torch.empty_like(hidden_ND)
    grad_weight_VD = torch.empty_like(weight_VD)

    def work() -> None:
        torch.mm(hidden_ND, weight_VD.T, out=student_NV)
        torch.mm(sides.teacher_hidden_NE, sides.teacher_weight_VE.T, out=teacher_NV)
        torch.mm(student_NV, weight_VD, out=grad_hidden_ND)
        torch.mm(student_NV.T, hidden_ND, out=grad_weight_VD)

    return work


def run_fast_floor(sides: Sides) -> Work:
    """The same, by the library that kdrun takes on this processor."""
    floor = run_floor(sides)

    def work() -> None:
        with fast_float32_products():
            floor()

    return work


def run_ours(name: str, sides: Sides, *, compiled: bool = False) -> Work:
    """kdrun.losses.chunked_objective, divided by the number of tokens as training does; compiled: as train.compile."""
    loss = make_loss(name)
    with_gradient = Compiled().with_gradient if compiled else None

    def mean() -> Tensor:
        teacher = sides.teacher_hidden_NE, sides.teacher_weight_VE
        return chunked_objective(loss, *sides.watched, *teacher, with_gradient=with_gradient).total / len(
            sides.target_N
        )

    return partial(_gradients, mean, sides)


def run_plain(name: str, sides: Sides) -> Work:
    """Whole logits of both models, the textbook's divergence in float32, autograd."""
    loss = TEXTBOOK[name]
    return partial(_gradients, lambda: loss(*(logits.float() for logits in _whole_logits(sides))).mean(), sides)


def run_liger(beta: float, compiled: bool, sides: Sides) -> Work:
    """liger_kernel's chunked LigerFusedLinearJSDLoss (beta 0 is forward KL) at its own chunk size, 1,024 tokens.

    The soft loss alone at temperature 1 (its own default mixes in half the cross-entropy), a mean over the tokens.
    It wants targets, for the mask: none is masked.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled)

    def mean() -> Tensor:
        return loss(*sides.watched, sides.teacher_hidden_NE, sides.teacher_weight_VE, sides.target_N)

    return partial(_gradients, mean, sides)


def run_trl(beta: float, sides: Sides) -> Work:
    """trl's GKDTrainer.generalized_jsd_loss on whole logits [1, N, V], as its trainer calls it; a mean over tokens."""
    from trl.experimental.gkd import GKDTrainer

    def mean() -> Tensor:
        student_NV, teacher_NV = _whole_logits(sides)
        return GKDTrainer.generalized_jsd_loss(
            student_logits=student_NV[None],
            teacher_logits=teacher_NV[None],
            labels=sides.target_N[None],
            beta=beta,
        )

    return partial(_gradients, mean, sides)


def _whole_logits(sides: Sides) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        teacher_NV = sides.teacher_hidden_NE @ sides.teacher_weight_VE.T
    return sides.student_hidden_ND @ sides.student_weight_VD.T, teacher_NV


def _gradients(mean: Callable[[], Tensor], sides: Sides) -> None:
    # not .backward(): a gradient that stayed behind would be in the next call's baseline of memory
    torch.autograd.grad(mean(), sides.watched)
