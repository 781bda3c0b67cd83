"""Real runs of the real command on a pair of some thousand parameters."""

from pathlib import Path

import pytest

from tests.conftest import SMALL, Kdrun, read_json, read_lines

FILES = {
    "config.yaml", "eval/quick/examples.jsonl", "eval/quick/protocol.json", "eval/quick/summary.json", "log.txt",
    "metrics.jsonl", "run.json", "student/config.json", "student/generation_config.json", "student/model.safetensors",
    "student/tokenizer.json", "student/tokenizer_config.json", "summary.json",
}  # fmt: skip
CHECKPOINT = {
    "manifest.json", "optimizer.safetensors", "state.json", "student/config.json", "student/generation_config.json",
    "student/model.safetensors", "student/tokenizer.json", "student/tokenizer_config.json",
}  # fmt: skip


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> bytes:
    return (folder / "student" / "model.safetensors").read_bytes()


def test_a_run_leaves_exactly_these_files(akl: Path) -> None:
    expected = FILES | {f"checkpoints/step-{step}/{name}" for step in (3, 6) for name in CHECKPOINT}
    assert files(akl) == expected


def test_the_record_says_what_ran_by_which_code_and_how_it_ended(akl: Path) -> None:
    record = read_json(akl / "run.json")
    assert record["command"] == "train"
    assert record["status"] == "done"
    assert record["overrides"][:2] == ["loss=akl", "loss.mu=0.5"]
    assert "mu=0.5" in " ".join(record["argv"])
    assert record["versions"]["torch"].startswith("2.")
    assert record["data"]["rows"] == 64
    assert record["data"]["scored_tokens"] > 64
    assert len(record["teacher"]["sha256"]) == len(record["student_start"]["sha256"]) == 64
    assert record["shared_vocabulary"] > 257
    assert "mu: 0.5" in (akl / "config.yaml").read_text()


def test_the_metrics_hold_the_losss_parts_and_the_diagnostics(akl: Path) -> None:
    lines = read_lines(akl / "metrics.jsonl")
    train = [line for line in lines if "train/loss" in line]
    valid = [line for line in lines if "valid/nll" in line]
    assert [line["step"] for line in train] == [2, 4, 6]
    assert [line["step"] for line in valid] == [0, 3, 6]
    wanted = "loss cross_entropy divergence fkl rkl jsd tvd head_gap tail_gap akl_weight top1_agreement"
    wanted += " grad_norm lr tokens_per_s peak_memory_gib"
    assert {f"train/{name}" for name in wanted.split()} <= train[0].keys()
    assert {f"valid/{name}" for name in ("nll", "teacher_nll", "fkl", "rkl", "head_gap")} <= valid[0].keys()
    mean = 0.5 * train[0]["train/cross_entropy"] + 0.5 * train[0]["train/divergence"]
    assert train[0]["train/loss"] == pytest.approx(mean, rel=1e-5)
    assert len({line["valid/teacher_nll"] for line in valid}) == 1, "the teacher does not change"


def test_the_summary_is_the_end_of_the_metrics_and_the_evaluation(akl: Path) -> None:
    summary, lines = read_json(akl / "summary.json"), read_lines(akl / "metrics.jsonl")
    assert summary["valid/fkl"] == lines[-1]["valid/fkl"]
    assert summary["steps"] == 6
    evaluation = read_json(akl / "eval" / "quick" / "summary.json")
    assert {f"eval/{name}": value for name, value in evaluation.items()}.items() <= summary.items()
    examples = read_lines(akl / "eval" / "quick" / "examples.jsonl")
    assert len(examples) == 6
    assert {"instruction", "references", "nll", "fkl", "greedy", "seed10"} <= examples[0].keys()
    mean = sum(example["greedy"]["rouge_l"] for example in examples) / 6
    assert evaluation["greedy/rouge_l"] == pytest.approx(mean)


def test_the_saved_student_loads_as_any_hugging_face_model(akl: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(akl / "student")
    tokenizer = AutoTokenizer.from_pretrained(akl / "student")
    assert model.config.n_layer == 1
    assert tokenizer("text")["input_ids"]


def test_the_same_command_twice_gives_the_same_student_bit_for_bit(akl: Path, kdrun_here: Kdrun) -> None:
    kdrun_here(
        "train", "loss=akl", "mu=0.5", *SMALL, "train.max_steps=6", "evaluate=false", "hydra.run.dir=outputs/again"
    )
    assert weights(akl.parent / "again") == weights(akl)


def test_memory_that_does_not_suffice_halves_the_micro_batch_and_says_so(
    akl: Path, kdrun_here: Kdrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training forward pass of more than two rows raises what a GPU's allocator raises."""
    import torch

    words = ["train", "loss=akl", "mu=0.5", *SMALL, "train.max_steps=3", "evaluate=false"]
    kdrun_here(*words, "train.micro_batch_size=2", "hydra.run.dir=outputs/two")

    def refuse(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if module.training and isinstance(module, torch.nn.Embedding) and arguments[0].ndim == 2 < len(arguments[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        done = kdrun_here(*words, "hydra.run.dir=outputs/halved")
    finally:
        hook.remove()
    assert done.stderr.count("next time type train.micro_batch_size=2 ") == 1
    folder = akl.parent / "halved"
    assert read_json(folder / "run.json")["micro_batch_size"] == 2
    assert weights(folder) == weights(akl.parent / "two")


@pytest.mark.parametrize(
    "loss", ["sft", "fkl", "rkl", "fkl_rkl", "jsd", "tvd", "skl", "srkl", "ab", "alpha", "taid", "amid", "gap"]
)
def test_every_loss_trains_through_the_command(loss: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for speed: the same words, the same code."""
    from kdrun.cli import CONF
    from kdrun.launch import launch

    monkeypatch.chdir(workspace)
    launch(
        "train",
        [f"loss={loss}", *SMALL, "train.max_steps=2", "evaluate=false", f"hydra.run.dir=outputs/each/{loss}"],
        CONF,
    )
    summary = read_json(workspace / "outputs" / "each" / loss / "summary.json")
    assert summary["valid/nll"] < 7
    assert summary["valid/fkl"] >= 0


def test_a_student_starts_from_the_student_of_a_run(akl: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    kdrun_here(
        "train", "loss=fkl", "pair.student=outputs/akl", *SMALL, "train.max_steps=1", "train.lr=1e-12",
        "evaluate=false",
        "hydra.run.dir=outputs/onward",
    )  # fmt: skip
    first = read_lines(workspace / "outputs" / "onward" / "metrics.jsonl")[0]
    assert first["valid/nll"] == pytest.approx(read_json(akl / "summary.json")["valid/nll"], rel=1e-5)


def test_two_checkpoints_of_any_architecture_are_a_pair(workspace: Path, kdrun_here: Kdrun) -> None:
    """pair.teacher=PATH pair.student=PATH: LLaMA teacher and student, untied heads padded to different widths."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(workspace / "outputs/teachers/tiny-unicode/teacher")
    for role, width, rows in (("teacher", 16, 320), ("student", 8, 304)):
        config = hf.LlamaConfig(
            vocab_size=rows, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=False, eos_token_id=0,
        )  # fmt: skip
        hf.LlamaForCausalLM(config).save_pretrained(workspace / "llama" / role)
        tokenizer.save_pretrained(workspace / "llama" / role)
    small = [word for word in SMALL if not word.startswith("pair.")]
    kdrun_here(
        "train", "pair=gpt2", "pair.teacher=llama/teacher", "pair.student=llama/student", "data=unicode", "train=tiny",
        "loss=jsd", *small, "train.max_steps=2", "hydra.run.dir=outputs/llama",
    )  # fmt: skip
    assert read_json(workspace / "outputs/llama/run.json")["shared_vocabulary"] == 304
    assert read_json(workspace / "outputs/llama/summary.json")["eval/fkl"] > 0


def test_a_mistake_found_in_the_run_is_one_line_and_recorded(akl: Path, kdrun_here: Kdrun, workspace: Path) -> None:
    words = ["pair.teacher=outputs/akl", "data.max_prompt_tokens=3", "hydra.run.dir=outputs/mistake"]
    done = kdrun_here("train", "loss=sft", *SMALL, *words, check=False)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("kdrun: data.max_prompt_tokens=3: ")
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert read_json(workspace / "outputs" / "mistake" / "run.json")["status"] == "failed"


def test_a_crash_keeps_its_traceback_and_exits_with_1(kdrun: Kdrun, workspace: Path) -> None:
    done = kdrun("train", "loss=sft", *SMALL, "train.max_steps=40", "train.lr=1e30", "train.clip_norm=null",
                 "hydra.run.dir=outputs/crash", check=False, fresh=True)  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "NonFiniteLoss: step" in done.stderr
    record = read_json(workspace / "outputs" / "crash" / "run.json")
    assert record["status"] == "failed"
    assert "NonFiniteLoss" in record["error"]


@pytest.mark.parametrize(
    "words",
    [
        ["train.precision=bf16"],
        ["train.gradient_checkpointing=true"],
        ["train.schedule=constant", "train.clip_norm=null", "train.chunk_tokens=7"],
        ["temperature=2", "temperature_squared=false", "kd_ratio=1.0"],
        ["head=paper", "reversed=true"],
        ["train.epochs=0.5", "train.max_steps=null", "train.micro_batch_size=3"],
        ["data.template=alpaca", "data.max_tokens=96", "data.max_prompt_tokens=90", "data.overlong=truncate"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_setting_of_a_training_runs(
    words: list[str], akl: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdrun.cli import CONF
    from kdrun.launch import launch

    monkeypatch.chdir(workspace)
    folder = workspace / "outputs" / "settings" / words[0].replace("=", "-")
    given = [word for word in words if word.startswith("data.template")]
    teacher = ["pair.teacher=outputs/akl"] if given else []  # a teacher of one's own may have seen another template
    launch(
        "train",
        ["loss=akl", *SMALL, "train.max_steps=2", *words, *teacher, "evaluate=false", f"hydra.run.dir={folder}"],
        CONF,
    )
    summary = read_json(folder / "summary.json")
    assert summary["steps"] == (4 if "train.epochs=0.5" in words else 2)
    assert summary["valid/fkl"] >= 0


def test_a_matched_gradient_is_logged_beside_the_true_divergence(
    akl: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdrun.cli import CONF
    from kdrun.launch import launch

    monkeypatch.chdir(workspace)
    words = ["loss=jsd", "beta=0.5", "match_grad_norm=true", *SMALL, "train.max_steps=2"]
    launch("train", [*words, "evaluate=false", "hydra.run.dir=outputs/matched"], CONF)
    first, second = (line for line in read_lines(workspace / "outputs/matched/metrics.jsonl") if "train/loss" in line)
    assert first["train/grad_match"] == pytest.approx(1, abs=1e-5)
    assert second["train/grad_match"] == pytest.approx(1, abs=0.5)
    assert first["train/grad_factor"] > 2
    assert first["train/divergence"] == pytest.approx(first["train/jsd"], rel=0.2), "jsd is that of the first 64 tokens"
    mean = 0.5 * first["train/cross_entropy"] + 0.5 * first["train/divergence"]
    assert first["train/loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("loss=sft", "unknown key 'match_grad_norm': loss=sft does not take it"),
        ("loss=fkl teacher=cached teacher.topk=8", "loss.match_grad_norm=true: teacher.topk=8 stores buckets"),
    ],
)
def test_what_a_matched_gradient_cannot_serve_is_refused_in_one_line(words: str, said: str) -> None:
    from kdrun.cli import CONF
    from kdrun.compose import compose_cells
    from kdrun.errors import UserError
    from kdrun.words import read_flags

    with pytest.raises(UserError) as caught:
        compose_cells("train", [*words.split(), "loss.match_grad_norm=true"], read_flags([]), CONF)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_docstrings_train_too(akl: Path, kdrun_here: Kdrun) -> None:
    kdrun_here(
        "train", "loss=fkl", "data=docstrings", "data.max_tokens=96", "data.max_prompt_tokens=64",
        "data.overlong=truncate", "pair.teacher=outputs/akl", *SMALL, "train.max_steps=2",
        "hydra.run.dir=outputs/docstrings",
    )  # fmt: skip
    assert read_json(akl.parent / "docstrings" / "summary.json")["eval/fkl"] > 0


def test_texts_that_would_overrun_the_model_are_refused_before_the_first_step(
    kdrun_here: Kdrun, workspace: Path
) -> None:
    """Not at the end of a training that took days."""
    done = kdrun_here("train", "loss=sft", *SMALL, "train.watch_teacher=false", "eval.max_new_tokens=2000",
                 "hydra.run.dir=outputs/overrun", check=False)  # fmt: skip
    assert done.returncode == 2
    assert "eval.max_new_tokens=2000: the longest prompt has" in done.stderr
    assert not (workspace / "outputs" / "overrun" / "metrics.jsonl").exists()
