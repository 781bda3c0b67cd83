"""Models: loading, the tiny scratch pair, hidden states and heads, and whether two vocabularies are one."""
