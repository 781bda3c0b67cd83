"""Losses: from the logits of teacher and student to nats per token, and from hidden states to one differentiable sum.

    from kdrun.losses import make_loss
    make_loss("akl", mu=0.5)(student_logits_NV, teacher_logits_NV)          # -> nats per token, float32

Imports torch and itself. One paper a file, named as the loss is.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from kdrun.errors import UserError
from kdrun.losses.ab import Ab
from kdrun.losses.akl import Akl
from kdrun.losses.alpha import Alpha
from kdrun.losses.amid import Amid
from kdrun.losses.cald import Cald
from kdrun.losses.chunked import ObjectiveSums, chunked_linear_loss, chunked_objective
from kdrun.losses.diagnostics import divergence_diagnostics
from kdrun.losses.fkl import Fkl
from kdrun.losses.fkl_rkl import FklRkl
from kdrun.losses.gap import Gap
from kdrun.losses.interface import Loss
from kdrun.losses.jsd import Jsd
from kdrun.losses.matched import MatchedGradient
from kdrun.losses.minillm import Minillm
from kdrun.losses.rkl import Rkl
from kdrun.losses.sft import Sft
from kdrun.losses.skl import Skl
from kdrun.losses.srkl import Srkl
from kdrun.losses.taid import Taid
from kdrun.losses.tvd import Tvd
from kdrun.losses.written import TokenWeights, WrittenText

__all__ = [
    "LOSSES",
    "Loss",
    "MatchedGradient",
    "ObjectiveSums",
    "TokenWeights",
    "WrittenText",
    "chunked_linear_loss",
    "chunked_objective",
    "divergence_diagnostics",
    "make_loss",
]

LOSSES: dict[str, type[Loss]] = {
    "sft": Sft,
    "fkl": Fkl,
    "rkl": Rkl,
    "fkl_rkl": FklRkl,
    "akl": Akl,
    "jsd": Jsd,
    "tvd": Tvd,
    "skl": Skl,
    "srkl": Srkl,
    "ab": Ab,
    "alpha": Alpha,
    "taid": Taid,
    "amid": Amid,
    "gap": Gap,
    "cald": Cald,
    "minillm": Minillm,
}


def make_loss(name: str, **params: Any) -> Loss:
    """The loss of that name, e.g. make_loss("akl", mu=0.5); a UserError for a name, key or value it does not take."""
    if name not in LOSSES:
        raise UserError(f"loss={name}: no such loss{_did_you_mean(name, LOSSES)}; one of {', '.join(LOSSES)}")
    known = getattr(LOSSES[name].__init__, "__kwdefaults__", None) or {}  # parameters of losses are keyword-only
    for key in params:
        if key not in known:
            allowed = f"one of {', '.join(known)}" if known else "it takes none"
            raise UserError(f"loss.{key}: no such parameter of loss={name}{_did_you_mean(key, known)}; {allowed}")
    return LOSSES[name](**params)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]}" if near else ""
