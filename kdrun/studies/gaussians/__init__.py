"""One Gaussian, and a mixture of two, fitted to a mixture of two from a grid of starts."""

from kdrun.studies.gaussians.study import study

__all__ = ["study"]
