"""One run that many tests of the commands look at."""

from pathlib import Path

import pytest

from tests.conftest import SMALL, run_kdrun


@pytest.fixture(scope="session")
def akl(workspace: Path) -> Path:
    """The main job, with a checkpoint on the way; to be read, and copied before it is changed."""
    run_kdrun(
        "train", "loss=akl", "mu=0.5", "name=akl", *SMALL, "train.max_steps=6", "train.log_every=2",
        "train.valid_every=3", "train.save_every=3", "hydra.run.dir=outputs/akl", cwd=workspace, fresh=True,
    )  # fmt: skip
    return workspace / "outputs" / "akl"
