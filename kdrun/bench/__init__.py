"""Side-by-side measurements: contestants of one task, in alternation, with spread; memory in a process of its own."""
