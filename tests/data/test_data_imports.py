"""What importing the data room costs."""

import subprocess
import sys

import pytest

PROBE = """
import sys
import {module}
print(sorted(name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("module", "loaded"),
    [
        ("kdrun.data", "[]"),
        ("kdrun.data.examples", "[]"),
        ("kdrun.data.jsonl", "[]"),
        ("kdrun.data.unicode_names", "[]"),
        ("kdrun.data.docstrings", "[]"),
        ("kdrun.data.hub", "[]"),
        ("kdrun.data.encoding", "['numpy']"),
    ],
)
def test_importing_loads_no_heavy_library(module, loaded):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == loaded


def test_the_embedded_sets_are_made_without_torch():
    probe = (
        "import sys; from kdrun.data.unicode_names import unicode_names; "
        "from kdrun.data.docstrings import harvest_source; import importlib.util; importlib.util.find_spec('torch'); "
        "list(harvest_source(b'import torch', 'm')); assert len(unicode_names()) > 20_000; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
