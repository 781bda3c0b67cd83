"""Weights & Biases as a mirror of metrics.jsonl: it never asks, never hangs a run, and losing it loses nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from kdrun.runs.ranks import rank

# Without a limit, a server that takes calls and never answers holds start and end for ever.
START_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 300

log = logging.getLogger(__name__)


class Tracker:
    """A W&B run, or nothing when `mode` is disabled.

    Args:
        mode: auto (online when a key is there, else offline), online, offline, disabled. WANDB_MODE overrules auto; of
            several ranks, all but rank 0 have it disabled.
        directory: the run directory; W&B's files land in its wandb/.
        run_id: the id to go on with when a run is resumed.
    """

    def __init__(
        self,
        mode: str,
        *,
        directory: Path,
        project: str,
        entity: str | None,
        name: str,
        group: str | None,
        job_type: str,
        tags: list[str],
        config: dict[str, Any],
        run_id: str | None = None,
    ) -> None:
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or "auto"
        self._run = None
        self._step = 0
        if mode == "disabled" or rank():
            return
        kwargs = {
            "dir": str(directory), "project": project, "entity": entity, "name": name, "group": group,
            "job_type": job_type, "tags": tags, "config": config, "id": run_id, "resume": "allow" if run_id else None,
        }  # fmt: skip
        self._run = _start(mode, kwargs)

    @property
    def run_id(self) -> str | None:
        """W&B's id of the run, to resume it."""
        return self._run.id if self._run is not None else None

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Mirror one line of metrics; a failing tracker costs a warning, not the run."""
        if self._run is None:
            return
        try:
            self._run.log(values, step=step)
            self._step = step
        except Exception as error:
            log.warning("W&B stopped taking metrics (%s); metrics.jsonl goes on", error)
            self._run = None

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table at the last step that was logged; one that W&B refuses costs a warning, and metrics go on."""
        if self._run is None:
            return
        try:
            import wandb

            # One type a column is what W&B asks by default; a metric that is missing in some rows is not one type.
            content = wandb.Table(columns=list(header), data=[list(row) for row in rows], allow_mixed_types=True)
            self._run.log({name: content}, step=self._step)
        except Exception as error:
            log.warning("W&B did not take the table %s (%s)", name, error)

    def image(self, name: str, path: Path) -> None:
        """Show a picture file at the last step that was logged; failures as for `table`."""
        if self._run is None:
            return
        try:
            import wandb

            self._run.log({name: wandb.Image(str(path))}, step=self._step)
        except Exception as error:
            log.warning("W&B did not take the picture %s (%s)", path, error)

    def report(
        self, tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]], figures: Mapping[str, Path]
    ) -> None:
        """Show a report: its tables (name: header and rows) and its figures (name: picture file)."""
        for name, (header, rows) in tables.items():
            self.table(f"report/{name}", header, rows)
        for name, path in figures.items():
            self.image(f"report/{name}", path)

    def finish(self, summary: dict[str, Any], *, failed: bool = False) -> None:
        """Write the final metrics and close; waits at most the finish time-out."""
        if self._run is None:
            return
        try:
            self._run.summary.update(summary)
            self._run.finish(exit_code=1 if failed else 0)
        except Exception as error:
            log.warning("W&B did not finish cleanly (%s); upload later with `wandb sync`", error)


def _start(mode: str, kwargs: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(init_timeout=START_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S, silent=True)
    try:
        if mode == "auto":
            # Never prompts; inside the try because it verifies the key over the network.
            mode = "online" if wandb.login(prompt=False) else "offline"
        return wandb.init(mode=cast("Any", mode), settings=settings, **kwargs)
    except wandb.Error as error:
        log.warning("W&B: %s; logging offline, upload later with `wandb sync`", " ".join(str(error).split()))
        return wandb.init(mode="offline", settings=settings, **kwargs)
