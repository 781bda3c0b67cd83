"""The embedded set of docstrings."""

import gc
import json
import sysconfig
from pathlib import Path

import pytest

from kdrun.data import Example
from kdrun.data.docstrings import docstring_pairs, first_paragraph, harvest_folder, harvest_source

SOURCE = b'''
"""A module."""
raise RuntimeError("never run")

def add(a: int, b: int = 1, *rest, scale: float = 0.5, **more) -> int:
    """Add two numbers
    and scale them.

    Not this.
    """

async def fetch(url):
    "Fetch a page from the network."

def _private():
    """Say nothing of this one."""

def silent():
    return 1

def brief():
    """Do it."""

def directive():
    """.. deprecated:: 3.4 use another one."""

class Shape:
    """A shape in the plane."""
    def area(self):
        """Return the area of the shape."""
        def inner():
            """Functions within functions are not asked."""
    def __len__(self):
        """Return the number of corners."""
    class Corner:
        def angle(self):
            """Return the angle at this corner."""

class _Hidden:
    def method(self):
        """Methods of private classes are not asked."""
'''


def test_public_functions_and_methods_give_signature_and_first_paragraph():
    assert list(harvest_source(SOURCE, "package.shapes")) == [
        Example(
            "Say what the Python function package.shapes.add does.",
            "def add(a: int, b: int=1, *rest, scale: float=0.5, **more) -> int",
            ("Add two numbers and scale them.",),
        ),
        Example(
            "Say what the Python function package.shapes.fetch does.",
            "async def fetch(url)",
            ("Fetch a page from the network.",),
        ),
        Example(
            "Say what the Python function package.shapes.Shape.area does.",
            "def area(self)",
            ("Return the area of the shape.",),
        ),
        Example(
            "Say what the Python function package.shapes.Shape.Corner.angle does.",
            "def angle(self)",
            ("Return the angle at this corner.",),
        ),
    ]


@pytest.mark.parametrize("source", [b"def f(:", b"print 'two'", b"\0", b"# -*- coding: nonsense -*-\n", b"\xff\xfe"])
def test_files_that_do_not_parse_give_nothing(source):
    assert list(harvest_source(source, "broken")) == []


def test_signatures_and_answers_out_of_bounds_are_left_out():
    long_answer = f'def f():\n    """{"word " * 200}"""\n'
    long_signature = f'def g({", ".join(f"argument_{i}" for i in range(40))}):\n    """Take many arguments."""\n'
    assert list(harvest_source((long_answer + long_signature).encode(), "m")) == []


def test_a_paragraph_ends_at_a_blank_line_even_with_spaces_in_it():
    assert first_paragraph("\n  One\n\ttwo   three.\n   \n  Four.\n") == "One two three."
    assert first_paragraph("") == ""


def test_tests_and_vendored_folders_are_skipped_and_packages_named(tmp_path):
    text = 'def {name}():\n    """Explain what it does."""\n'
    for path in ("a/__init__.py", "a/b.py", "a/test/c.py", "site-packages/d.py", "a/_internal/e.py", "z.py"):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(name=f"f_{file.stem.strip('_')}"))
    names = [example.instruction.split()[5] for example in harvest_folder(tmp_path, "root")]
    assert names == ["root.a.f_init", "root.a.b.f_b", "root.z.f_z"]


def test_real_docstrings_agree_with_the_imported_functions():
    # Independent: the function itself, imported, says the same.
    folder = f"{sysconfig.get_path('stdlib')}/json"
    found = {example.instruction.split()[5]: example for example in harvest_folder(Path(folder), "json")}
    assert found["json.dumps"].response == " ".join(json.dumps.__doc__.split("\n\n")[0].split())
    assert found["json.dumps"].input.startswith("def dumps(obj, *, skipkeys=False, ensure_ascii=True, ")


@pytest.mark.slow
def test_the_whole_set_has_some_ten_thousand_distinct_pairs():
    examples = docstring_pairs()
    assert gc.isenabled()
    assert 8_000 < len(examples) < 14_000  # 10,588 with Python 3.11.7 and torch 2.13.0
    assert 70 < sum(len(example.response) for example in examples) / len(examples) < 100  # 83.9 characters
    assert len({example.instruction for example in examples}) == len(examples)
    assert len({example.response for example in examples}) == len(examples)
    names = {example.instruction.split()[5] for example in examples}
    assert {"json.dumps", "torch.nn.functional.gelu"} & names
    assert any(name.startswith("torch.") for name in names)
    assert all("\n" not in example.input + example.response for example in examples)
