"""Data: examples from five sources, the prompts they become, their tokens, and the positions that are scored.

Importing this room, or its modules that only read text, imports no torch, transformers or datasets.
"""

from kdrun.data.examples import Example, Splits, split_by_hash
from kdrun.data.sources import SOURCES, load_splits
from kdrun.data.template import TEMPLATES, render_prompt

__all__ = ["SOURCES", "TEMPLATES", "Example", "Splits", "load_splits", "render_prompt", "split_by_hash"]
