"""kdrun train rollout=...: every sensible pair of rollout and loss trains, is logged, and goes on exactly."""

import shutil
from pathlib import Path

import pytest

from tests.commands.test_train import weights
from tests.commands.test_train_resume import copied
from tests.conftest import SMALL, Kdrun, read_json, read_lines

SHORT = [*SMALL, "train.log_every=1", "evaluate=false"]
FEW = ["rollout.max_new_tokens=5"]
PAIRS = [
    ("student", ["loss=rkl"]),
    ("student", ["loss=minillm", "rollout.teacher_share=0.3"]),
    ("mixed", ["loss=jsd", "kd_ratio=1.0", "rollout.share=1"]),
    ("adaptive", ["loss=skl", "rollout.threshold=1"]),
    ("contrastive", ["loss=cald"]),
    ("contrastive", ["loss=akl", "match_grad_norm=true", "train.micro_batch_size=3"]),
    ("teacher", ["loss=sft", "rollout.samples=2"]),
    ("teacher", ["loss=akl", "teacher=cached", "teacher.directory=outputs/cache"]),
]


@pytest.mark.parametrize(("rollout", "words"), PAIRS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_pair_of_rollout_and_loss_trains_and_says_what_was_written(
    rollout: str, words: list, kdrun_here: Kdrun, workspace: Path
) -> None:
    name = f"{rollout}-{words[0][5:]}"
    folder = workspace / "outputs" / name
    kdrun_here(
        "train", f"rollout={rollout}", *words, *FEW, *SHORT, "train.max_steps=2", f"hydra.run.dir=outputs/{name}"
    )
    line = next(line for line in read_lines(folder / "metrics.jsonl") if "train/loss" in line)
    assert line["train/grad_norm"] > 0
    if rollout == "teacher":
        facts = read_json(folder / "run.json")["rollout"]
        assert (
            facts["texts"] == read_json(folder / "run.json")["data"]["rows"] == (128 if words[0] == "loss=sft" else 64)
        )
        assert facts["tokens"] <= 5 * facts["texts"]
    else:
        assert line["train/student_share"] == 1
        assert 1 <= line["train/generated_length"] <= 5
        assert 0 < line["train/generating_share"] < 1
        assert line["train/generated_tokens_per_s"] > 0


def test_a_corpus_counts_in_the_total_alone(kdrun_here: Kdrun, workspace: Path) -> None:
    """total = divergence + weight x NLL of the corpus, each the mean over its own tokens."""
    (workspace / "corpus.txt").write_text("\n\n".join(f"Text number {i} of a small corpus." for i in range(40)))
    kdrun_here(
        "train", "loss=fkl", "kd_ratio=1.0", "data.corpus=corpus.txt", "data.corpus_weight=0.5", "data.corpus_rows=3",
        *SHORT, "train.max_steps=2", "train.micro_batch_size=2", "hydra.run.dir=outputs/corpus",
    )  # fmt: skip
    for line in (line for line in read_lines(workspace / "outputs/corpus/metrics.jsonl") if "train/loss" in line):
        assert line["train/corpus_nll"] == pytest.approx(5.7, abs=0.1)  # log 300, of a student that knows nothing
        total = line["train/divergence"] + 0.5 * line["train/corpus_nll"]
        assert line["train/loss"] == pytest.approx(total, rel=1e-6)


def test_an_adaptive_run_goes_on_with_its_buffer_and_threshold(kdrun_here: Kdrun, workspace: Path) -> None:
    """A validation at every step and no margin: the threshold moves between the checkpoint and the end."""
    words = ["rollout=adaptive", "loss=rkl", "rollout.threshold=0.4", "rollout.margin=0", "rollout.buffer_size=12",
             "train.lr=3", *FEW, *SHORT, "train.max_steps=8", "train.valid_every=1", "train.save_every=3",
             "train.keep_checkpoints=3",
             "hydra.run.dir=outputs/adaptive"]  # fmt: skip
    kdrun_here("train", *words)
    whole = workspace / "outputs" / "adaptive"
    for killed_at in (3, 6):  # where the checkpoint is older or newer than the validation of its step
        folder = copied(whole, f"adaptive-{killed_at}", status="running")
        for step in range(killed_at + 1, 9):
            shutil.rmtree(folder / "checkpoints" / f"step-{step}", ignore_errors=True)
        if killed_at == 6:
            lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            (folder / "metrics.jsonl").write_text(
                "".join(line for line in lines if not (line.startswith('{"step": 6,') and "valid/" in line))
            )
        done = kdrun_here("train", f"resume=outputs/adaptive-{killed_at}")
        assert f"resumed after step {killed_at}" in done.stderr
        assert weights(folder) == weights(whole)
        assert exact(folder) == exact(whole)
    thresholds = {line["train/threshold"] for line in exact(whole) if "train/threshold" in line}
    assert len(thresholds) > 1


def exact(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what the clock says."""
    timed = ("_s", "_per_s", "peak_memory_gib", "teacher_share", "generating_share")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in read_lines(run / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=sft", "rollout=student"], "rollout=student: does not suit loss=sft"),
        (["loss=cald"], "rollout=data: does not suit loss=cald"),
        (["loss=minillm", "rollout=mixed"], "rollout=mixed: does not suit loss=minillm"),
        (["rollout=student", "teacher=cached"], "teacher=cached: rollout=student scores text that the student writes"),
        (["rollout=teacher", "role=teacher", "loss=sft"], "rollout=teacher: role=teacher is fine-tuned on the data"),
        (
            ["rollout=student", "rollout.max_new_tokens=96"],
            "rollout.max_new_tokens=96: must be below data.max_tokens=96",
        ),
        (
            ["rollout=adaptive", "train.valid_every=null"],
            "train.valid_every=null: rollout=adaptive raises its threshold",
        ),
        (
            ["rollout=mixed", "rollout.schedule=geometric", "rollout.share_end=1"],
            "rollout.schedule=geometric: the data's",
        ),
        (
            ["rollout=teacher", "rollout.server=http://127.0.0.1/v1"],
            "rollout.server and rollout.server_model go together",
        ),
    ],
)
def test_a_senseless_pair_is_refused_with_the_reason(
    words: list, said: str, kdrun_here: Kdrun, workspace: Path
) -> None:
    done = kdrun_here("train", *words, *SMALL, "hydra.run.dir=outputs/refused", check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "; type" in done.stderr or "null:" in done.stderr
    assert not (workspace / "outputs" / "refused").exists()
