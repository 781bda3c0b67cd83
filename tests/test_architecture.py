"""The layering of the package, read from its syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kdrun"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A floor imports only from floors below it; rooms of floor 1 know nothing of one another.
FLOORS = {
    "errors": 0, "native": 0, "__init__": 0, "untrusted": 0, "secrecy": 0,
    "losses": 1, "models": 1, "data": 1, "runs": 1, "config": 1,
    "teachers": 2, "generation": 2, "rollouts": 2,
    "training": 3, "evaluation": 3, "analysis": 3, "studies": 3, "bench": 3, "canaries": 3, "planning": 3,
    "commands": 4,
    "explain": 5, "words": 5, "allowed": 5, "compose": 5, "prepare": 5, "sweep": 5, "launch": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip
# Within a floor, who may call whom.
BEFORE = {
    "untrusted": ("errors",),
    "rollouts": ("generation", "teachers"),  # who writes, and how what was written is told apart
    "studies": ("analysis",),  # styles of figures
    "bench": ("training", "evaluation"),  # it times the loops themselves, as the commands run them
    "canaries": ("training", "evaluation"),  # what they look at
    "planning": ("training", "evaluation"),  # which rows a step sees, what a validation holds
    "explain": ("words",),
    "allowed": ("words",),
    "compose": ("allowed", "cli", "explain", "words"),
    "prepare": ("compose", "words"),
    "sweep": ("allowed", "compose", "words"),
    "launch": ("allowed", "cli", "compose", "prepare", "sweep", "words"),
}
HEAVY = {
    "torch", "transformers", "datasets", "wandb", "bert_score", "rouge_score", "accelerate", "peft", "matplotlib",
    "pandas", "hydra", "omegaconf",
}  # fmt: skip
# Where a heavy package may be imported at the head of a file: what cannot be said without it.
HYDRA = {"hydra", "omegaconf"}
MAY_IMPORT = {
    "losses": {"torch"},
    "teachers": {"torch"},
    "training": {"torch"},
    "canaries": {"torch"},
    "studies": {"torch"},
    "launch": HYDRA,
    "compose": HYDRA,
    "prepare": HYDRA,
    "sweep": HYDRA,
}
MAY_IMPORT_FILES = {
    "models/heads.py": {"torch"}, "data/scored.py": {"torch"}, "data/batch.py": {"torch"},
    "generation/generate.py": {"torch"}, "generation/reading.py": {"torch"}, "generation/sampling.py": {"torch"},
    "generation/slots.py": {"torch", "transformers"},
    "evaluation/agreement.py": {"torch"},
    "planning/memory.py": {"torch"}, "planning/work.py": {"torch"},
    "bench/loss.py": {"torch"}, "bench/objective.py": {"torch"}, "bench/textbook.py": {"torch"},
}  # fmt: skip
DRAWERS = {"utils", "common", "helpers", "helper", "base", "misc", "manager", "util", "tools"}
PURE = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level_imports(tree: ast.Module) -> set[str]:
    lines = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in lines for name in imports(node)}


def rooms_imported(tree: ast.AST) -> set[str]:
    names = {name.split(".")[1] for name in imports(tree) if name.startswith("kdrun.") and name.count(".")}
    return {name for name in names if name in FLOORS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_floor_imports_only_from_floors_below_it(path: Path) -> None:
    here, tree = room(path), ast.parse(path.read_text())
    assert here in FLOORS, f"{here} has no floor: say in tests/test_architecture.py where it stands"
    for other in rooms_imported(tree) - {here}:
        downward = FLOORS[other] < FLOORS[here] or other in BEFORE.get(here, ())
        # cli hands over to launch inside a function and knows nothing else of it
        assert downward or (here, other) == ("cli", "launch"), f"{here} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    allowed = MAY_IMPORT.get(room(path), set()) | MAY_IMPORT_FILES.get(name_of(path), set())
    assert not (top_level_imports(ast.parse(path.read_text())) & HEAVY) - allowed


def test_the_command_line_imports_typer_and_the_standard_library_only() -> None:
    names = top_level_imports(ast.parse((PACKAGE / "cli.py").read_text()))
    assert names <= {"__future__", "os", "pathlib", "typing", "typer"}


def test_losses_import_torch_and_themselves_only() -> None:
    for path in (PACKAGE / "losses").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert rooms_imported(tree) <= {"losses", "errors", "native"}, path
        outside = top_level_imports(tree) - {"kdrun"}
        known = {
            "__future__",
            "abc",
            "collections",
            "contextlib",
            "ctypes",
            "dataclasses",
            "difflib",
            "enum",
            "math",
            "torch",
            "typing",
            "warnings",
        }
        assert outside <= known, path


def test_no_loss_is_named_in_training_or_below_the_commands() -> None:
    """Names of losses as strings: the loop and the evaluation treat all losses alike."""
    names = {path.stem for path in (ROOT / "conf" / "loss").glob("[a-z]*.yaml")} - {
        "alpha",
        "gap",
        "fkl",
        "rkl",
        "jsd",
        "tvd",
    }
    for path in (PACKAGE / "training").glob("*.py"):
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & names, path


def test_no_config_reaches_below_the_commands() -> None:
    for path in MODULES:
        if FLOORS.get(room(path), 9) < FLOORS["commands"] and room(path) != "config":
            assert "config" not in rooms_imported(ast.parse(path.read_text())), path
            assert "DictConfig" not in path.read_text(), path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_happens_at_import(path: Path) -> None:
    """Module bodies define things: no call is made for its effect, no loop, no try."""
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = isinstance(node, ast.If) and (
            "TYPE_CHECKING" in ast.dump(node.test) or "__main__" in ast.dump(node.test)
        )
        assert isinstance(node, PURE) or docstring or guarded, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_short_and_have_a_name_of_their_own(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in DRAWERS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_bare_except_and_no_assert_for_users(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}"
        assert not (isinstance(node, ast.Assert) and node.msg is not None), f"{path}:{node.lineno}: raise UserError"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_have_docstrings(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and room(path) != "config"
        ):
            assert ast.get_docstring(node) or room(path) == "cli", f"{path}:{node.lineno} {node.name}"


def test_every_loss_has_one_name_in_four_places() -> None:
    for path in (ROOT / "conf" / "loss").glob("[a-z]*.yaml"):
        assert (PACKAGE / "losses" / f"{path.stem}.py").exists(), path
        assert (ROOT / "tests" / "losses" / f"test_{path.stem}.py").exists(), path
