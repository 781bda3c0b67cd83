"""The embedded set `data=docstrings`: a Python function's signature, answer what its docstring says first."""

import ast
import gc
import importlib.util
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from kdrun.data.examples import Example
from kdrun.errors import UserError

# Tests, other people's packages, and internals that are mostly tests (torch/testing/_internal: a tenth of the time).
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "_internal", "_vendor", "__pycache__"}
)
SIGNATURE_CHARS = 300
ANSWER_CHARS = range(15, 601)


def docstring_pairs() -> list[Example]:
    """Pairs from the standard library, then the installed torch, in order of path and line.

    Of functions with the same name, and of functions with the same answer ("Runs the forward pass." 88 times), the
    first stays: so no answer of one split is repeated in another. Some 10,000 pairs in some 10 s: the files are parsed,
    never imported or run. Which pairs come out hangs on the versions of Python and torch. Raises UserError when torch's
    folder cannot be found.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        raise UserError("data=docstrings: reads the installed torch package and finds none; type pip install torch")
    by_name: dict[str, Example] = {}
    with _garbage_collection_paused():
        for package, folder in (("", sysconfig.get_path("stdlib")), ("torch", torch.submodule_search_locations[0])):
            for example in harvest_folder(Path(folder), package):
                by_name.setdefault(example.instruction, example)
    by_answer: dict[str, Example] = {}
    for example in by_name.values():
        by_answer.setdefault(example.response, example)
    return list(by_answer.values())


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Halves the time where torch is loaded (18 s -> 8 s of CPU): every few trees Python would walk all its objects."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def harvest_folder(folder: Path, package: str = "") -> Iterator[Example]:
    """Pairs of every Python file under a folder, tests left out; `package` is the folder's own import name, if any."""
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(inner):
            names = [package, *inner] if package else list(inner)
            module = ".".join(names[:-1] if names[-1] == "__init__" else names)
            yield from harvest_source(path.read_bytes(), module)


def harvest_source(source: bytes, module: str) -> Iterator[Example]:
    """Pairs of one file's public functions and methods; none where it does not parse (templates, other Pythons).

    Public: no leading underscore in the function's name or its class's. Left out: a signature over 300 characters, a
    first paragraph under 15 or over 600 characters or that is a Sphinx directive.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for name, function in public_functions(tree, module):
        answer = first_paragraph(ast.get_docstring(function) or "")
        if len(answer) in ANSWER_CHARS and not answer.startswith(".. "):
            line = signature(function)
            if len(line) <= SIGNATURE_CHARS:
                yield Example(f"Say what the Python function {name} does.", line, (answer,))


def public_functions(
    node: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Dotted name and tree of every public function of a module or class, with those of its public classes."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from public_functions(child, name)
        else:
            yield name, child


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """One line, as written but for spacing: `def softmax(input: Tensor, dim: int | None=None) -> Tensor`."""
    word = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return " ".join(f"{word} {function.name}({ast.unparse(function.args)}){returns}".split())


def first_paragraph(docstring: str) -> str:
    """The text up to the first blank line, whitespace joined into single spaces."""
    lines = takewhile(str.strip, docstring.strip().splitlines())
    return " ".join(" ".join(lines).split())
