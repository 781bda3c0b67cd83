"""One run that many tests of the commands look at."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import SMALL, run_kdrun


@pytest.fixture(scope="session")
def akl_run(taught: Path) -> Path:
    """The main job, with a checkpoint on the way; tests see a copy."""
    run_kdrun(
        "train", "loss=akl", "mu=0.5", "name=akl", *SMALL, "train.max_steps=6", "train.log_every=2",
        "train.valid_every=3", "train.save_every=3", "hydra.run.dir=outputs/akl", cwd=taught, fresh=True,
    )  # fmt: skip
    return taught / "outputs" / "akl"


@pytest.fixture(scope="module")
def akl(akl_run: Path, workspace: Path) -> Path:
    """The main job's run in the workspace; to be read, and copied before it is changed."""
    return Path(shutil.copytree(akl_run, workspace / "outputs" / "akl"))
