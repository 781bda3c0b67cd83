"""Is what a training computes what it says? Invariances that a fault breaks, looked at on a few real rows."""
