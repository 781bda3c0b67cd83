"""The processes of a training: how many, what they cannot do together, and their start and end on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.commands.assembly import choose_device, choose_precision
from kdrun.config import TrainConfig
from kdrun.config.launching import DeepSpeed, OneProcess, Sharding
from kdrun.errors import UserError
from kdrun.runs.directory import RECORD, let_go, write_json
from kdrun.runs.gpus import visible_gpus
from kdrun.runs.ranks import from_rank_zero, join, num_ranks
from kdrun.runs.records import read_json

if TYPE_CHECKING:
    from kdrun.training.objective import StudentObjective
    from kdrun.training.placement import Placement

# When one rank has failed: for the others to end by themselves, and then on SIGTERM, before they are killed.
GRACE_S = 5


def num_processes(config: TrainConfig) -> int:
    """Processes of a training: those that torchrun or accelerate launch has started, else what launch= says.

    Raises:
        UserError: naming the key, for what they cannot do.
    """
    launch, device = config.launch, config.train.device
    started = num_ranks()
    asked = None if isinstance(launch, OneProcess) else launch.processes
    if started > 1:
        if asked not in (None, started):
            raise UserError(f"launch.processes={asked}: {started} are started already; leave it out")
        count = started
    elif isinstance(launch, OneProcess):
        return 1
    elif asked is None and (device == "cpu" or not visible_gpus()):
        raise UserError("launch.processes=null: one a GPU, and this training sees none; type launch.processes=2")
    else:
        count = asked or len(visible_gpus())
    if count == 1:
        return 1
    if device.startswith("cuda:"):
        raise UserError(f"train.device={device}: each of {count} processes takes a GPU of its own; type cuda")
    if config.rollout.name == "adaptive":
        raise UserError(
            "rollout=adaptive: its buffer of texts is one process's, so it runs in one; type launch=local, or "
            "rollout=mixed"
        )
    if isinstance(launch, Sharding) and config.student_writes:
        raise UserError(
            f"launch={launch.kind}: rollout={config.rollout.name} writes with a whole student; type launch=ddp"
        )
    return count


def make_accelerator(config: TrainConfig, device: str) -> Any:
    """accelerate's view of this process: its device, its rank and the precision of its matrix products."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    AcceleratorState._reset_state(reset_partial_state=True)  # a sweep's cells share a process, not a precision
    precision = {"fp32": "no", "bf16": "bf16"}[choose_precision(config.train.precision, device)]
    # DDP's buckets are the gradients themselves, not a second copy.
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[views])


def place(
    config: TrainConfig, objective: StudentObjective, make_optimizer: Callable[[], Any], accelerator: Any
) -> Placement:
    """The student of an objective, and its optimiser, over the ranks as launch= says."""
    from kdrun.training.placement import Placement
    from kdrun.training.sharding import Sharded
    from kdrun.training.zero import Zero

    launch = config.launch
    if num_ranks() == 1 or not isinstance(launch, Sharding):
        return Placement(objective, make_optimizer, accelerator)
    if isinstance(launch, DeepSpeed):
        return Zero(objective, make_optimizer, accelerator, stage=launch.stage, clip_norm=config.train.clip_norm)
    return Sharded(objective, make_optimizer, accelerator)


def teacher_sharding(config: TrainConfig, device: Any) -> Callable[[Any], None] | None:
    """Shards a live teacher over the ranks, where that is asked for; else None."""
    launch = config.launch
    if not isinstance(launch, Sharding) or launch.teacher == "whole" or num_ranks() == 1:
        return None
    from kdrun.training.sharding import shard_teacher

    return lambda model: shard_teacher(model, device, offload=launch.teacher == "offloaded")


def common_directory(directory: Path, device: str) -> Path:
    """Rank 0's run directory, when all ranks are there and have looked over their words."""
    join(choose_device(device))
    return from_rank_zero(lambda: directory)


def run_ranks(words: Sequence[str], count: int, directory: Path) -> int:
    """Run `kdrun train words` in `count` processes on this machine; returns the exit code.

    A rank that fails ends all; signals go on to every rank, which stop after the same step.
    """
    from torch.distributed import TCPStore

    let_go(directory)  # rank 0 takes it
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is here: no rank must find a free port
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // count)),
    }  # fmt: skip
    ranks = []
    for number in range(count):
        own = {name: str(value) for name, value in {**shared, "RANK": number, "LOCAL_RANK": number}.items()}
        command = [sys.executable, "-m", "kdrun", "train", *words]
        # A session of its own: the terminal's Ctrl-C comes once, through here.
        ranks.append(subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True))
    first = _watch(ranks)
    if first.returncode < 0:
        said = f"rank {ranks.index(first)} was ended by {signal.Signals(-first.returncode).name}"
        if (record := directory / RECORD).exists():
            content = read_json(record, key=str(record))
            write_json(record, {**content, "status": "failed", "error": said})
        print(f"kdrun: {said}, and with it the run", file=sys.stderr)
    return first.returncode if first.returncode in (0, 2, 130, 143) else 1


def _watch(ranks: Sequence[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Wait for the end of all; returns the rank that failed first, one that was killed before others, if any did."""
    pending: list[tuple[float, signal.Signals]] = []
    failed: list[subprocess.Popen[bytes]] = []
    while any(rank.poll() is None for rank in ranks):
        try:
            time.sleep(0.1)
            if not failed and (failed := [rank for rank in ranks if rank.poll()]):
                now = time.monotonic()
                pending = [(now + GRACE_S, signal.SIGTERM), (now + 2 * GRACE_S, signal.SIGKILL)]
            if pending and time.monotonic() > pending[0][0]:
                _send(ranks, pending.pop(0)[1])
        except KeyboardInterrupt:
            _send(ranks, signal.SIGINT)
        except SystemExit:
            _send(ranks, signal.SIGTERM)
    failed = failed or [rank for rank in ranks if rank.returncode]
    return min(failed or ranks, key=lambda rank: rank.returncode)


def _send(ranks: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)
