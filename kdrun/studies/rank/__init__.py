"""Linear maps of several ranks fitted from near-uniform to peaked starts."""

from kdrun.studies.rank.study import study

__all__ = ["study"]
