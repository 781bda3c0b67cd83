"""Claims of the literature checked without a large model: one module a study, each with `study(...) -> Findings`."""
