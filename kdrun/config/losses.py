"""The loss group: one section a loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kdrun.config.section import Finite, NonNegative, OpenShare, Positive, Section, Share


class SFT(Section):
    """Cross-entropy on the data; no teacher."""

    name: Literal["sft"]


class Distillation(Section):
    """What every divergence shares: (1 - kd_ratio) cross-entropy + kd_ratio T^2 divergence, and its gradient's size."""

    kd_ratio: Share
    temperature: Positive
    temperature_squared: bool
    match_grad_norm: bool


class FKL(Distillation):
    """Forward KL."""

    name: Literal["fkl"]


class RKL(Distillation):
    """Reverse KL."""

    name: Literal["rkl"]


class FKLRKL(Distillation):
    """weight FKL + (1 - weight) RKL."""

    name: Literal["fkl_rkl"]
    weight: Share


class AKL(Distillation):
    """Adaptive KL (arXiv 2404.02657); mu is the share of the teacher's mass that is head."""

    name: Literal["akl"]
    mu: OpenShare
    head: Literal["code", "paper", "pointwise"]
    reversed: bool


class JSD(Distillation):
    """Generalised Jensen-Shannon divergence; 0 means FKL, 1 means RKL."""

    name: Literal["jsd"]
    beta: Share


class TVD(Distillation):
    """Total variation distance."""

    name: Literal["tvd"]


class SKL(Distillation):
    """Skewed KL (DistiLLM)."""

    name: Literal["skl"]
    alpha: Share


class SRKL(Distillation):
    """Skewed reverse KL (DistiLLM)."""

    name: Literal["srkl"]
    alpha: Share


class AB(Distillation):
    """Alpha-beta divergence (ABKD)."""

    name: Literal["ab"]
    alpha: Finite
    beta: Finite


class Alpha(Distillation):
    """Alpha-divergence."""

    name: Literal["alpha"]
    alpha: Finite


class TAID(Distillation):
    """FKL to a target between student and teacher."""

    name: Literal["taid"]
    t_start: Share
    t_end: Share
    alpha: NonNegative
    beta: Share


class AMiD(Distillation):
    """A base divergence with the alpha-mixture as assistant."""

    name: Literal["amid"]
    alpha: Finite
    lam: Share
    base: Literal["fkl", "rkl", "ab"]
    order: Literal["pr", "qr", "rp", "rq"]


class Gap(Distillation):
    """Gaps on the teacher's head and tail."""

    name: Literal["gap"]
    head_weight: NonNegative
    tail_weight: NonNegative
    mu: OpenShare


class CALD(Section):
    """SKL on the teacher's text, SRKL on the student's (DistiLLM-2)."""

    name: Literal["cald"]
    kd_ratio: Share
    temperature: Positive
    temperature_squared: bool
    alpha: Share
    variant: Literal["paper", "code"]


class MiniLLM(Section):
    """Policy gradient of the sequence's reverse KL (MiniLLM)."""

    name: Literal["minillm"]
    single_step: bool
    length_norm: bool
    gamma: Share
    reward_scale: Positive
    reward_clip: Positive
    ratio_clip: Positive


Loss = Annotated[
    SFT | FKL | RKL | FKLRKL | AKL | JSD | TVD | SKL | SRKL | AB | Alpha | TAID | AMiD | Gap | CALD | MiniLLM,
    Field(discriminator="name"),
]
LOSS_SECTIONS: tuple[type[Section], ...] = (
    SFT, FKL, RKL, FKLRKL, AKL, JSD, TVD, SKL, SRKL, AB, Alpha, TAID, AMiD, Gap, CALD, MiniLLM,
)  # fmt: skip
# Every parameter of a loss may be typed without its prefix: mu=0.5 is loss.mu=0.5.
SHORT_KEYS: frozenset[str] = frozenset(key for loss in LOSS_SECTIONS for key in loss.model_fields) - {"name"}


def loss_parameters(loss: Section) -> dict[str, Any]:
    """The keyword arguments of `make_loss` in a loss section: what is neither its name nor the objective's."""
    return loss.model_dump(exclude={"name", *Distillation.model_fields})
