"""The losses of a study, by name or by name and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdrun.losses import Loss

Spec = str | Mapping[str, Any]  # "akl" or {"name": "akl", "mu": 0.3}


@dataclass(frozen=True)
class Contender:
    """A loss under its label in tables and pictures; `look` is its number there (colour, line style, marker)."""

    label: str
    name: str
    params: Mapping[str, Any]
    look: int

    def loss(self) -> Loss:
        """A fresh loss, its schedule at the start.

        Raises:
            UserError: for a parameter or a value that the loss does not take.
        """
        from kdrun.losses import make_loss  # torch: not for reading the runs of a study

        return make_loss(self.name, **self.params)


def contenders(specs: Sequence[Spec]) -> list[Contender]:
    """One contender a spec, in order. Labels: `FKL`, `AKL mu=0.3`."""
    found = []
    for look, spec in enumerate(specs):
        params = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = params.pop("name")
        words = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()]
        found.append(Contender(" ".join([label_of(name), *words]), name, params, look))
    return found


def label_of(name: str) -> str:
    """FKL+RKL for fkl_rkl, AMiD for amid, the name in capitals for the rest."""
    return {"fkl_rkl": "FKL+RKL", "amid": "AMiD", "alpha": "alpha", "gap": "gap"}.get(name, name.upper())
