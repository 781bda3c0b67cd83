"""The AKL paper's Figures 2 and 3: free logits fitted to distributions on a line."""

from kdrun.studies.toy.study import study

__all__ = ["study"]
