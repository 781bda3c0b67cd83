"""The blog's rank study: linear maps of some rank fitted under several losses; which loss is faster, from which start.

Shapes: M maps side by side (num_seeds times the ranks), C contexts, D inputs, V classes, L looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.studies.contenders import Contender, Spec, contenders
from kdrun.studies.findings import Findings
from kdrun.studies.fit import fit
from kdrun.studies.rank.claims import advantages, faster_claim
from kdrun.studies.rank.pictures import order_picture, others_picture, rank_picture

SIZE = 64  # inputs, classes, and contexts a step
NUM_LOOKS = 100
DISTANCES = ("probabilities", "weights")


@dataclass(frozen=True)
class Maps:
    """Teachers of every rank and the students' starts (of standard deviation 1), for every seed; one set of contexts.

    held_out_CD: contexts that no step sees, unless contexts are fixed.
    """

    teacher_MDV: Tensor
    start_MDV: Tensor
    held_out_CD: Tensor
    context_seed: int


@dataclass(frozen=True)
class Course:
    """Distances of one loss's students to their teachers at some steps, from one start.

    distances: `probabilities` and `weights`, each [L, seeds, ranks].
    """

    loss: str
    init_std: float
    steps: list[int]
    distances: dict[str, Tensor]


def study(
    *,
    losses: Sequence[Spec],
    ranks: Sequence[int],
    init_std: Sequence[float],
    teacher_std: float,
    contexts: str,
    num_seeds: int,
    learning_rate: float,
    num_steps: int,
    seed: int,
    begin: Callable[[int], Callable[..., None]],
) -> Findings:
    """How fast each loss takes full 64 x 64 maps to teachers of every rank, in probabilities and in weights; Adam."""
    named = contenders(losses)
    maps = draw_maps(ranks, num_seeds=num_seeds, teacher_std=teacher_std, seed=seed)
    advance = begin(len(init_std) * len(named))
    courses = {}
    for std in init_std:
        for contender in named:
            courses[std, contender.label] = fit_maps(
                contender, maps, std, fresh=contexts == "fresh", learning_rate=learning_rate, num_steps=num_steps,
                num_seeds=num_seeds,
            )  # fmt: skip
            advance(1)
    ahead = advantages(courses, ranks)
    reverse = [row for row in ahead if row["loss"] == "RKL"]
    return Findings(
        claims=tuple(faster_claim([row for row in reverse if row["distance"] == what]) for what in DISTANCES),
        tables={"ahead": ahead, "course": _table(courses, ranks)},
        pictures=(
            *(
                rank_picture(named, [courses[std, each.label] for each in named], ranks, what)
                for what in DISTANCES
                for std in (init_std[-1], init_std[0])
            ),
            order_picture(reverse),
            others_picture(named, ahead),
        ),
    )


def draw_maps(ranks: Sequence[int], *, num_seeds: int, teacher_std: float, seed: int) -> Maps:
    """Teachers: products of two normal factors, [64, r] and [r, 64], over sqrt(r), so that weights vary by teacher_std
    at every rank; students: normal weights of full rank. Maps of one seed stand together, a rank each.
    """
    generator = torch.Generator().manual_seed(seed)
    teachers, starts = [], []
    for _ in range(num_seeds):
        for rank in ranks:
            left, right = torch.randn(SIZE, rank, generator=generator), torch.randn(rank, SIZE, generator=generator)
            teachers.append(teacher_std * rank**-0.5 * left @ right)
            starts.append(torch.randn(SIZE, SIZE, generator=generator))
    held_out_CD = torch.randn(SIZE, SIZE, generator=generator)
    return Maps(torch.stack(teachers), torch.stack(starts), held_out_CD, context_seed=seed + 1)


def fit_maps(
    contender: Contender,
    maps: Maps,
    init_std: float,
    *,
    fresh: bool,
    learning_rate: float,
    num_steps: int,
    num_seeds: int,
) -> Course:
    """The course of every map under one loss. Contexts are normal: drawn anew for every step, or the held-out ones."""
    weights_MDV = (init_std * maps.start_MDV).requires_grad_()
    contexts_CD = maps.held_out_CD.clone()
    teacher_logits_NV = (contexts_CD @ maps.teacher_MDV).flatten(0, 1)
    p_MCV = (maps.held_out_CD @ maps.teacher_MDV).softmax(-1)
    generator = torch.Generator().manual_seed(maps.context_seed)
    steps: list[int] = []
    seen: dict[str, list[Tensor]] = {what: [] for what in DISTANCES}

    def look(step: int, _: Tensor) -> None:
        if step % max(1, num_steps // NUM_LOOKS) == 0 or step == num_steps:
            steps.append(step)
            q_MCV = (maps.held_out_CD @ weights_MDV).softmax(-1)
            seen["probabilities"].append((q_MCV - p_MCV).square().sum(-1).mean(-1).sqrt())
            seen["weights"].append(row_centred_distance(weights_MDV, maps.teacher_MDV))
        if fresh:  # the logits that `fit` holds are written over: it reads them anew at every step
            contexts_CD.normal_(generator=generator)
            teacher_logits_NV.copy_((contexts_CD @ maps.teacher_MDV).flatten(0, 1))

    fit(
        contender.loss(), lambda: (contexts_CD @ weights_MDV).flatten(0, 1), teacher_logits_NV,
        optimizer=torch.optim.Adam([weights_MDV], lr=learning_rate), num_steps=num_steps, look=look,
    )  # fmt: skip
    distances = {what: torch.stack(each).double().unflatten(1, (num_seeds, -1)) for what, each in seen.items()}
    return Course(contender.label, init_std, steps, distances)


def row_centred_distance(student_MDV: Tensor, teacher_MDV: Tensor) -> Tensor:
    """L2 distance of the weights, a map each, after every row's mean over the classes is taken away.

    A constant added to a row adds the same to all logits of a context, and softmax does not see it: without centring
    two maps that give the same probabilities would be apart.
    """
    gap_MDV = student_MDV - teacher_MDV
    return (gap_MDV - gap_MDV.mean(-1, keepdim=True)).flatten(1).norm(dim=1)


def _table(courses: dict[tuple[float, str], Course], ranks: Sequence[int]) -> list[dict[str, object]]:
    return [
        {
            "init_std": std, "loss": label, "rank": rank, "step": step,
            **{f"{what}_mean_of_seeds": float(course.distances[what][look, :, r].mean()) for what in DISTANCES},
        }
        for (std, label), course in courses.items()
        for r, rank in enumerate(ranks)
        for look, step in enumerate(course.steps)
    ]  # fmt: skip
