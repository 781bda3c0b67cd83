"""DDP and FSDP2 in two processes (gloo, CPU) make the steps of one process: loss, gradient norm, weights."""

import json
import os
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.forked import Forked

CODE = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_launches import run_cases
run_cases(Path(sys.argv[1]))
"""
# name: (architecture, launch, teacher, rows of a micro-batch, loss)
CASES = {
    f"{launch}-{architecture}-{teacher}-{micro or 'whole'}": (architecture, launch, teacher, micro, "akl")
    for launch in ("ddp", "fsdp")
    for architecture, teacher, micro in (
        ("gpt2", "live", None), ("gpt2", "cached", 1), ("llama", "live", 1), ("llama", "cached", None),
    )
} | {
    "fsdp-gpt2-sharded-1": ("gpt2", "fsdp", "sharded", 1, "akl"),
    "fsdp-llama-offloaded-1": ("llama", "fsdp", "offloaded", 1, "akl"),
    "fsdp-gpt2-live-matched": ("gpt2", "fsdp", "live", 2, "matched"),
}  # fmt: skip
# name: (architecture, ZeRO's stage, teacher, rows of a micro-batch, loss)
ZERO_CASES = {
    f"zero{stage}-{architecture}-{teacher}-{micro or 'whole'}": (architecture, f"zero{stage}", teacher, micro, "akl")
    for stage in (2, 3)
    for architecture, teacher, micro in (
        ("gpt2", "live", None), ("gpt2", "cached", 1), ("llama", "live", 1), ("llama", "cached", None),
        ("gpt2", "sharded", 1),
    )
} if find_spec("deepspeed") else {}  # fmt: skip


def models(architecture: str):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.training.conftest import END, VOCABULARY, tiny

    if architecture == "gpt2":
        return tiny(1).float(), tiny(2, width=16).float()
    made = []
    for seed, width in ((1, 8), (2, 16)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=32, eos_token_id=END, pad_token_id=END,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        made.append(model)
    return made


def steps_of(case, folder: Path) -> dict:
    """Four steps on rows of very different lengths, the last on one row: a rank has none."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    from kdrun.losses import MatchedGradient, make_loss
    from kdrun.runs.ranks import every_rank
    from kdrun.teachers.live import LiveTeacher
    from kdrun.training.loop import Loop, LoopSettings
    from kdrun.training.objective import StudentObjective
    from kdrun.training.optimizer import make_optimizer
    from kdrun.training.placement import Placement
    from kdrun.training.sharding import shard_teacher
    from tests.teachers.conftest import cached_teacher, make_cache
    from tests.training.conftest import END, encoded

    architecture, launch, source, micro, name = case
    AcceleratorState._reset_state(reset_partial_state=True)
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # as commands/launching.py asks for it
    accelerator, rows = Accelerator(cpu=True, kwargs_handlers=[views]), encoded(16)
    student, model = models(architecture)
    alone = accelerator.num_processes == 1
    if source in ("sharded", "offloaded") and not alone:
        shard_teacher(model, torch.device("cpu"), offload=source == "offloaded")
    teacher = LiveTeacher(model, rows=None)
    if source == "cached":
        place = folder / f"{launch}-{architecture}-{alone}-{os.getpid()}" / "rows"
        teacher = cached_teacher(place, make_cache(place, teacher, rows))
    loss = make_loss("jsd", beta=0.1) if name == "matched" else make_loss(name)
    objective = StudentObjective(student, MatchedGradient(loss) if name == "matched" else loss, kd_ratio=0.5)
    # With a small eps, Adam moves a weight by lr for a gradient that is rounding alone.
    placement = kinds().get("alone" if alone else launch, Placement)(
        objective, lambda: make_optimizer(student, lr=0.01, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.1), accelerator
    )
    settings = LoopSettings(num_steps=4, batch_size=5, micro_batch_size=micro, seed=0, clip_norm=1.0,
                            learning_rate=lambda step: 0.01, log_every=1)  # fmt: skip
    loop = Loop(placement, rows, settings, teacher=teacher, pad_id=END)
    facts = {"loss": [], "norm": [], "tokens": [], "nll": []}
    from kdrun.evaluation.agreement import agreement

    for number in range(4):
        measured = placement.with_student(lambda: agreement(student, teacher, rows, pad_id=END, batch_size=4))
        sums = loop.step(number)
        facts["loss"].append(sums.total)
        facts["norm"].append(sums.grad_norm)
        facts["tokens"].append(sums.num_tokens)
        facts["nll"].append(measured.means["nll"])
    student = placement.student()
    every_rank(None)
    facts["weights"] = (
        [] if student is None else torch.cat([p.detach().flatten() for p in student.parameters()]).tolist()
    )
    return facts


def kinds() -> dict:
    """How a launch places the student, where it is not whole on every rank."""
    from kdrun.training.sharding import Sharded
    from kdrun.training.zero import Zero

    return {"fsdp": Sharded} | {f"zero{stage}": partial(Zero, stage=stage, clip_norm=1.0) for stage in (2, 3)}


def gathers_of_a_step(chunk_tokens: int | None, micro: int, launch: str = "fsdp") -> int:
    """All-gathers of one step of the sharded GPT-2 with one block, its rows all of one length."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from torch.utils._python_dispatch import TorchDispatchMode

    from kdrun.losses import make_loss
    from kdrun.training.loop import Loop, LoopSettings
    from kdrun.training.objective import StudentObjective
    from tests.training.conftest import END, encoded

    AcceleratorState._reset_state(reset_partial_state=True)
    student = models("gpt2")[0]
    objective = StudentObjective(student, make_loss("sft"), chunk_tokens=chunk_tokens)
    place = kinds()[launch]
    placement = place(objective, lambda: torch.optim.SGD(student.parameters(), lr=0.0), Accelerator(cpu=True))
    settings = LoopSettings(num_steps=1, batch_size=8, micro_batch_size=micro, seed=0, clip_norm=1.0,
                            learning_rate=lambda step: 0.0, log_every=1)  # fmt: skip
    rows = encoded(1).subset([0] * 8)
    loop = Loop(placement, rows, settings, teacher=None, pad_id=END)
    called = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watched():
        loop.step(0)
    return sum(name.startswith("c10d._allgather_base_") for name in called)


def run_cases(folder: Path) -> None:
    from kdrun.runs.ranks import alone, join, rank

    join("cpu")
    found = {"gathers": [gathers_of_a_step(None, 4), gathers_of_a_step(1, 4), gathers_of_a_step(None, 1)]}
    if ZERO_CASES:
        found["zero gathers"] = [gathers_of_a_step(None, 4, "zero3"), gathers_of_a_step(1, 4, "zero3")]
    for name, case in (CASES | ZERO_CASES).items():
        found[name] = {"together": steps_of(case, folder)}
        if rank() == 0:
            with alone():
                found[name]["alone"] = steps_of(case, folder)
    (folder / f"rank-{rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("launches")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environments = ({**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01")
    ranks = [Forked(CODE, str(folder), cwd=folder, environment=environment) for environment in environments]
    for rank in ranks:
        _, err = rank.communicate(timeout=200)
        assert rank.returncode == 0, err
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in "01"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES | ZERO_CASES)
def test_two_processes_make_the_steps_of_one(name: str, measured: list[dict]) -> None:
    alone = measured[0][name]["alone"]
    assert alone["tokens"][3] < min(alone["tokens"][:3])
    for facts in (rank[name]["together"] for rank in measured):
        assert facts["tokens"] == alone["tokens"]
        for key in ("loss", "norm", "nll"):
            assert facts[key] == pytest.approx(alone[key], rel=1e-5), key
        if facts["weights"]:
            assert facts["weights"] == pytest.approx(alone["weights"], rel=0, abs=1e-5)
    assert measured[0][name]["together"]["weights"], "rank 0 has the student whole"


@pytest.mark.slow
def test_the_head_is_gathered_once_a_step_and_not_once_a_chunk(measured: list[dict]) -> None:
    """The one block is gathered for every forward and backward pass; what is left is embeddings, last norm and head."""
    if ZERO_CASES:
        once, in_chunks = measured[0]["zero gathers"]
        assert once == in_chunks > 0
    once, in_chunks, in_four_micro_batches = measured[0]["gathers"]
    assert once == in_chunks == 2 * 1 + 1
    assert in_four_micro_batches - once == 3 * 2
