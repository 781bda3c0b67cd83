"""kdrun train adapter=...: small checkpoints, exact resume, a plain merged student, and refusals before torch."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.words import read_flags
from tests.commands.test_train_resume import copied, facts
from tests.conftest import SMALL, Kdrun, read_json, run_kdrun

LORA = ["adapter=minillm", *SMALL, "pair.student_width=32", "train.max_steps=4"]
CLOCK = ("train/generated_tokens_per_s", "train/generating_share")
BITS = [
    "pair=gpt2",
    "data=unicode",
    "pair.teacher=outputs/teachers/tiny-unicode",
    "pair.student=outputs/teachers/tiny-unicode",
]


@pytest.fixture(scope="module")
def lora(workspace: Path) -> Path:
    """A finished run with every part that an adapter meets: texts of the student's own, activations computed twice."""
    run_kdrun(
        "train", *LORA, "rollout=mixed", "rollout.share=0.5", "train.gradient_checkpointing=true", "train.save_every=2",
        "hydra.run.dir=outputs/lora", cwd=workspace,
    )  # fmt: skip
    return workspace / "outputs" / "lora"


@pytest.fixture(scope="module")
def cached(lora: Path, workspace: Path) -> Path:
    """A run with a teacher that is not there, and a student that starts from the merged one, copied to outputs/base."""
    shutil.copytree(lora / "student", lora.with_name("base"))
    words = ["pair.student=outputs/base", "teacher=cached", "adapter=distillm", "train.lr=0.05", "train.save_every=4"]
    run_kdrun("train", *LORA, *words, "hydra.run.dir=outputs/lora-cached", cwd=workspace)
    return lora.with_name("lora-cached")


def test_a_run_with_an_adapter_ends_in_a_plain_student_and_resumes_to_the_bit(kdrun_here: Kdrun, lora: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(lora / "student")
    start = read_json(lora / "run.json")["student_start"]
    assert start["parameters"] == sum(p.numel() for p in student.parameters())
    # c_attn of the one layer, 32 -> 96, in rank 8
    assert start["trainable_parameters"] == 8 * (32 + 96)
    saved = load_file(lora / "checkpoints" / "step-4" / "student" / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in saved.values()) == start["trainable_parameters"]

    half = copied(lora, "lora-half", status="interrupted")
    shutil.rmtree(half / "checkpoints" / "step-4")
    shutil.rmtree(half / "student")
    kdrun_here("train", "resume=outputs/lora-half")
    assert read_json(half / "run.json")["resumed_from_step"] == 2
    ours, theirs = ([{k: v for k, v in line.items() if k not in CLOCK} for line in facts(run)] for run in (half, lora))
    assert ours == theirs
    for file in ("checkpoints/step-4/student/adapter_model.safetensors", "student/model.safetensors"):
        ours, theirs = load_file(half / file), load_file(lora / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_its_own_evaluation_measured_is_what_evaluate_finds_in_the_saved_student(
    kdrun_here: Kdrun, cached: Path
) -> None:
    """A cached teacher, and a student that starts from the merged one; trained in the run, loaded in the evaluation."""
    settings = [word for word in SMALL if word.startswith(("eval.", "track."))]
    kdrun_here("evaluate", "run=outputs/lora-cached", *settings, "hydra.run.dir=outputs/lora-evaluated")
    trained, loaded = (read_json(run / "summary.json") for run in (cached, cached.with_name("lora-evaluated")))
    for metric in ("nll", "fkl"):
        assert trained[f"eval/{metric}"] == pytest.approx(loaded[metric], rel=1e-5)


def test_adapters_do_not_go_on_from_another_base(kdrun_here: Kdrun, cached: Path) -> None:
    run = copied(cached, "lora-moved", status="interrupted")
    file = cached.with_name("base") / "model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    done = kdrun_here("train", f"resume={run}", check=False)
    assert done.returncode == 2 and "base.sha256 was" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adapter=minillm", "adapter.quantise=4bit"], "adapter.quantise=4bit: pair=tiny starts from weights that kdr"),
        ([*BITS, "adapter=minillm", "adapter.quantise=4bit"],
         "adapter.quantise=4bit: bitsandbytes needs a CUDA GPU, and there is none here; type adapter.quantise=null"),
        ([*BITS, "pair.teacher_bits=8"],
         "pair.teacher_bits=8: bitsandbytes needs a CUDA GPU, and there is none here; type pair.teacher_bits=null"),
        ([*BITS, "pair.teacher_bits=4", "train.device=cpu"],
         "pair.teacher_bits=4: bitsandbytes needs a CUDA GPU, and train.device=cpu is none; type pair.teacher_bits=n"),
        (["adapter.r=4"], "unknown key 'adapter.r': adapter=none does not take it; only adapter=distillm,minillm"),
    ],
)  # fmt: skip
def test_what_cannot_run_here_is_refused_in_one_line(
    words: list[str], told: str, kdrun_here: Kdrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = kdrun_here("train", *words, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().startswith(f"kdrun: {told}") and len(done.stderr.strip().splitlines()) == 1


def test_the_papers_values() -> None:
    """MiniLLM: r 8, alpha 32, dropout 0.1; DistiLLM and ABKD: r 16, alpha 64."""
    found = [compose_cells("train", [f"adapter={name}"], read_flags([]), CONF)[0].config.adapter
             for name in ("minillm", "distillm")]  # fmt: skip
    assert [(a.r, a.alpha, a.dropout, a.targets, a.quantise) for a in found] == [
        (8, 32, 0.1, None, None), (16, 64, 0.1, None, None),
    ]  # fmt: skip
