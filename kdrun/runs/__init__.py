"""Run directories: what ran, by which code, how it ended, what came out. Knows no model, loss or config."""
