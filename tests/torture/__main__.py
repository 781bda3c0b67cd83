"""python -m tests.torture [NAME]...: run the long promises, print their table, exit 1 when one is broken."""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.torture.rows import Row

BUDGETS_S = {"resume": 420, "flips": 240, "inputs": 300, "together": 240}  # 20 minutes on two cores


def main(names: list[str]) -> int:
    """Run the named tortures, or all of them."""
    rows: list[Row] = []
    for name in names or list(BUDGETS_S):
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
            rows += import_module(f"tests.torture.{name}").run(Path(folder), BUDGETS_S[name])
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print("| promise | kept | measured |\n|---|---|---|")
    for row in rows:
        print(row)
    return 0 if rows and all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
