"""Two processes (gloo, CPU) make the step of one: the same loss, gradient norm, weights and factor, on both ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from accelerate import Accelerator
import numpy as np
import torch
torch.set_num_threads(1)
from kdrun.generation.reading import Mixture
from kdrun.losses import MatchedGradient, make_loss
from kdrun.rollouts.rollout import Contrastive, Rollout, StudentText, WithCorpus
from kdrun.teachers.live import LiveTeacher
from kdrun.training.loop import Loop, LoopSettings
from kdrun.training.objective import StudentObjective
from kdrun.training.placement import Placement
from tests.rollouts.conftest import writer_of
from tests.training.conftest import END, VOCABULARY, encoded, tiny

teacher, rows, steps = tiny(2, width=16), encoded(16), {"num_steps": 3, "seed": 0}
settings = LoopSettings(num_steps=3, batch_size=5, micro_batch_size=2, seed=0, clip_norm=1.0,
                        learning_rate=lambda step: 0.1, log_every=1)
accelerator = Accelerator(cpu=True)
facts = {"rank": accelerator.process_index, "loss": [], "tokens": [], "norm": [], "weights": [], "factor": []}
rank, ranks = accelerator.process_index, accelerator.num_processes
corpus = lambda rollout: WithCorpus(rollout, encoded(6, seed=4), rows=lambda n: np.arange(3)[rank::ranks], weight=0.3)
on_policy = lambda writer: StudentText(rows, writer, share=lambda progress: 1.0, **steps)
for loss, made in (
    (make_loss("akl"), lambda student: Rollout(rows)),
    (MatchedGradient(make_loss("jsd", beta=0.1)), lambda student: Rollout(rows)),
    (make_loss("cald", variant="code"), lambda student: corpus(Contrastive(rows, writer_of(student), **steps))),
    (make_loss("minillm"), lambda student: on_policy(writer_of(student, mixed_with=Mixture(teacher, 0.2, VOCABULARY)))),
):
    student = tiny(1)
    rollout = made(student)
    objective = StudentObjective(student, loss, kd_ratio=0.5, teacher_share=rollout.teacher_share)
    placement = Placement(objective, lambda: torch.optim.SGD(student.parameters(), lr=0.1), accelerator)
    loop = Loop(placement, rows, settings, teacher=LiveTeacher(teacher, rows=None), pad_id=END, rollout=rollout)
    for number in range(4):  # the fourth has one row: a rank is left without any
        s = loop.step(number)
        facts["loss"].append(s.total), facts["tokens"].append(s.num_tokens), facts["norm"].append(s.grad_norm)
        facts["factor"].append(loss.observe(s.divergence, 0.0).get("grad_factor", 1.0))
    facts["weights"] += [float(p.double().pow(3).sum()) for p in student.parameters()]
open(sys.argv[1] + str(accelerator.process_index), "w").write(json.dumps(facts))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(folder: Path, world: int) -> list[dict]:
    port, root = free_port(), Path(__file__).parents[2]
    processes = []
    for rank in range(world):
        env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        if world > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(folder / f"of{world}-")]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    return [json.loads((folder / f"of{world}-{rank}").read_text()) for rank in range(world)]


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    alone = run(tmp_path, 1)[0]
    ranks = run(tmp_path, 2)
    assert alone["tokens"][3] < min(alone["tokens"][:3])
    for rank in ranks:
        assert rank["tokens"] == alone["tokens"]
        for key in ("loss", "norm", "weights", "factor"):
            assert rank[key] == pytest.approx(alone[key], rel=1e-6, abs=1e-9), key
    assert ranks[0]["weights"] == ranks[1]["weights"], "parameters are equal on both ranks"
