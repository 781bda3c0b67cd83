"""Proven and doubtful statements about the divergences, in float64 on random pairs."""

from kdrun.studies.theory.study import study

__all__ = ["study"]
