"""The map of the losses: value and gradient, limits, and how large the gradients are."""

from kdrun.studies.losses.study import study

__all__ = ["study"]
