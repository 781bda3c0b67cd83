"""The wheel runs from any folder, with the configs that it was built with."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kdrun.cli import CONF

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_config_and_experiment(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {f"kdrun/conf/{path.relative_to(CONF)}" for path in CONF.rglob("*.yaml")}
    files |= {f"kdrun/conf/experiment/{path.name}" for path in (ROOT / "experiments").glob("*.yaml")}
    assert files <= names
    assert {
        "kdrun/conf/train.yaml",
        "kdrun/native/head_border.c",
        "kdrun/analysis/report/page.html",
        "kdrun/analysis/report/page.css",
    } <= names


def test_the_wheel_composes_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    words = [sys.executable, "-m", "kdrun", "show", "experiment=mu", "mu=0.3"]
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "mu: 0.3" in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "from kdrun.cli import CONF; print(CONF)"],
        check=True,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(installed / "kdrun" / "conf")
