"""The composers: each command builds its parts from a typed config, runs one thing, and leaves a run directory."""
