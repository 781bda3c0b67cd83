"""What the README tells a person to type is accepted."""

import functools
import json
import re
import shlex
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.explain import group_options
from kdrun.prepare import own_words
from kdrun.words import expand_short_key, read_flags, split_words

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "running.md", *sorted((ROOT / "experiments").glob("*/README.md"))]
COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix("$ ")
        for page in PAGES
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if re.match(r"(\$ )?kdrun (train|sweep|show|study) ", line)
    }
)
REFUSED = {"kdrun train mu=2", "kdrun train loss=fkl mu=0.5"}  # shown for their errors


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 8
    assert set(COMMANDS) >= REFUSED


@functools.cache
def composes(command: str, words: tuple[str, ...], flags: tuple[str, ...] = ()) -> bool:
    """Once for commands that differ in nothing else."""
    return bool(compose_cells(command, list(words), read_flags(list(flags)), CONF))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in REFUSED])
def test_a_command_of_the_readme_composes(command: str) -> None:
    if "hydra/sweeper=optuna" in command:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="a plugin that is installed apart")
    _, verb, *words = shlex.split(command)
    if verb == "study":
        which, *words = ["strict=true" if word == "--strict" else word for word in words]
        own, of_sweep = own_words([f"study={which}", *words])
        assert composes("study", tuple(own))
        verb, words = "sweep", ["experiment=headtail", *of_sweep]
    flags, typed = split_words(words)
    overrides = [expand_short_key(word) for word in typed if not word.startswith("resume=")]
    assert composes("train", tuple(overrides), (*flags, *(["-m"] if verb == "sweep" else [])))


def test_what_holds_is_what_the_studies_found() -> None:
    """Every row of the README's table is a claim, with its verdict, of a study's output in experiments/studies."""
    found = {}
    for path in (ROOT / "experiments" / "studies").glob("*/findings.json"):
        for claim in json.loads(path.read_text())["claims"]:
            found[path.parent.name, claim["statement"]] = f"{claim['verdict']} {claim['condition']}".strip()
    section = (ROOT / "README.md").read_text().split("## What holds and what does not")[1].split("\n## ")[0]
    rows = [tuple(cell.strip() for cell in line.split(" | ")) for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    for study, statement, verdict, _ in rows[1:]:
        assert found[study.removeprefix("| "), statement] == verdict
    assert f"Of {len(found)} claims {list(found.values()).count('holds')} hold, " in section


def test_every_choice_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for group in ("loss", "pair", "data", "teacher", "train", "eval", "experiment", "study"):
        for option in group_options(CONF, group):
            assert re.search(rf"\b{re.escape(option)}\b", text), f"{group}={option}"
