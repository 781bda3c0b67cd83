"""Runs as W&B has them: settings, final metrics and curves; it holds no values of single examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.analysis.comparison import Row
from kdrun.errors import UserError
from kdrun.runs.directory import MetricsFile, flatten

PREFIX = "wandb:"
STATES = {"finished": "done", "crashed": "failed", "failed": "failed", "killed": "interrupted"}
WAIT_S = 30


def fetch_runs(source: str) -> list[Any]:
    """The W&B runs of training and evaluation that wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/GROUP means.

    Raises:
        UserError: when the words are none of these, there is no key, the server does not answer, or no run is there.
    """
    parts = source.removeprefix(PREFIX).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"{source}: must be wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/GROUP")
    import wandb

    filters = {"group": parts[2]} if len(parts) == 3 else {}
    try:
        runs = list(wandb.Api(timeout=WAIT_S).runs("/".join(parts[:2]), filters=filters, lazy=False))
    except wandb.errors.UsageError as error:
        raise UserError(f"{source}: W&B needs a key; type wandb login, or set WANDB_API_KEY") from error
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise UserError(f"{source}: W&B did not answer ({' '.join(str(error).split())})") from error
    runs = [run for run in runs if run.job_type in ("train", "evaluate", None)]
    if not runs:
        raise UserError(f"{source}: no run of kdrun there; look at the entity, project and group, or give a directory")
    return runs


def online_row(run: Any) -> Row:
    """The row of one W&B run (an object with entity, project, id, name, job_type, state, config and summary).

    Metrics are renamed as they are for a run directory: eval/nll becomes NAME/nll with the evaluation's name.
    """
    settings = flatten(dict(run.config))
    evaluation = str(settings.get("eval.name", "eval"))
    metrics = {}
    for key, value in dict(run.summary).items():
        if isinstance(value, int | float) and not key.startswith("_"):
            if run.job_type == "evaluate" or key.startswith("eval/"):
                metrics[f"{evaluation}/{key.removeprefix('eval/')}"] = value
            else:
                metrics[key] = value
    folder = Path(f"{PREFIX}{run.entity}/{run.project}/{run.id}")
    return Row(folder, str(run.config.get("name") or run.name), STATES.get(run.state, run.state), settings, metrics)


def save_curves(run: Any, folder: Path) -> None:
    """Write the history of a W&B run as the metrics.jsonl that a run directory has."""
    file = MetricsFile(folder / "metrics.jsonl")
    for line in run.scan_history():
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key[0] != "_"}
        if numbers:
            file.write(step=line["_step"], **numbers)
    file.close()


def refuse_offline_folders(folders: Sequence[Path]) -> None:
    """
    Raises:
        UserError: when a folder is a mirror that W&B wrote offline, which holds less than the run directory around it.
    """
    for folder in folders:
        if folder.name.startswith("offline-run-") or any(folder.glob("run-*.wandb")):
            around = folder.parent.parent
            raise UserError(f"{folder}: a W&B mirror is no source of a comparison; give the run directory, {around}")
