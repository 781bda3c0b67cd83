"""Texts written by a causal language model: one token at a time, each text from a random stream of its own."""
