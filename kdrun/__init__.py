"""kdrun: an experiment runner for white-box knowledge distillation of language models."""

__version__ = "0.1.0"
