"""The papers' runs: their values, the shapes of their models, and a dry run on random weights to the comparison."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.models.random_init import write_shape
from kdrun.models.scratch import train_tokenizer
from kdrun.words import read_flags
from tests.conftest import Kdrun, read_json

ROWS = ["sft", "seqkd", "fkl", "rkl", "skl", "srkl", "fkl_rkl", "akl"]


def cells_of(name: str) -> list:
    words = [f"experiment=paper/{name}"]
    return [cell.config for cell in compose_cells("train", words, read_flags(["--multirun"]), CONF)]


@pytest.mark.parametrize(("name", "stated"), [("gpt2", (20, 32, 5e-4, 512)), ("llama", (10, 60, 1e-5, 512))])
def test_a_sweep_has_every_row_of_the_akl_papers_table_with_its_values(name: str, stated: tuple) -> None:
    configs = cells_of(name)
    assert [config.name for config in configs] == ROWS
    for config in configs:
        train = config.train
        assert (train.epochs, train.batch_size, train.lr, config.data.max_tokens) == stated
        assert (train.betas, train.eps, train.weight_decay, train.clip_norm) == ((0.9, 0.999), 1e-8, 0.01, 1.0)
        assert (train.schedule, train.lr_min, train.warmup_steps) == ("cosine", 1e-7, 0)
        assert (config.data.name, config.data.corpus, config.adapter.kind) == ("dolly", None, "none")
        assert (config.eval.suites, config.eval.seeds) == (("dolly", "sni", "unni"), (10, 20, 30, 40, 50))
        if config.loss.name != "sft":
            assert (config.loss.kd_ratio, config.loss.temperature) == (0.5, 1)
    assert [config.rollout.name for config in configs] == ["data", "teacher", *["data"] * 6]
    assert (configs[-1].loss.mu, configs[-1].loss.head) == (0.5, "code")


def test_abkd_trains_the_divergence_alone_from_its_fine_tuned_start() -> None:
    configs = {config.loss.name: config for config in [*cells_of("abkd"), *cells_of("abkd_llama")]}
    assert all(config.loss.kd_ratio == 1 for config in configs.values())
    assert cells_of("abkd")[-1].pair.student == "MiniLLM/init-gpt2-120M"
    adapter = configs["ab"].adapter
    assert (configs["ab"].loss.alpha, configs["ab"].loss.beta) == (0.2, 0.7)
    assert (adapter.r, adapter.alpha, adapter.dropout) == (16, 64, 0.1)


@pytest.mark.parametrize(
    ("pair", "role", "published"),
    [
        ("gpt2", "teacher", 1_557_611_200),
        ("gpt2", "student", 124_439_808),
        ("llama", "teacher", 6_738_415_616),
        ("llama", "student", 1_100_048_384),
        ("openllama", "student", 3_426_473_600),
    ],
)
def test_shapes_have_the_parameters_that_were_published(pair: str, role: str, published: int, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from kdrun.planning.memory import parameters

    shapes = yaml.safe_load((CONF / "pair" / "_shapes.yaml").read_text())
    write_shape(shapes[pair][role], tmp_path, layers=None)
    assert parameters(AutoConfig.from_pretrained(tmp_path)) == published
    write_shape(shapes[pair][role], tmp_path, layers=1)
    scaled = AutoConfig.from_pretrained(tmp_path)
    assert scaled.num_hidden_layers == 1 and (scaled.hidden_size, scaled.vocab_size) == (
        shapes[pair][role].get("hidden_size") or shapes[pair][role]["n_embd"], shapes[pair][role]["vocab_size"],
    )  # fmt: skip


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with Dolly's shape, test sets and a tokenizer; the words of a dry run in it."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}."} for i in range(40)]
    for name in ("dolly/train", "dolly/test", "suites/dolly/valid", "suites/sni/valid", "suites/unni/valid"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = rows if name == "dolly/train" else rows[:2]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    texts = [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    ]
    train_tokenizer(texts * 9, vocab_size=400).save_pretrained(tmp_path / "tokenizer")
    return [
        "pair.random_init=true", "pair.layers=1", "pair.tokenizer=tokenizer", "data.path=dolly", "data.max_rows=8",
        "data.max_tokens=96", "data.max_prompt_tokens=80", "train.max_steps=10", "train.batch_size=1",
        "train.valid_rows=1", "train.save_every=null", "train.precision=fp32", "eval.suites_path=suites",
        "eval.bertscore=false", "eval.seeds=[10]", "eval.num_examples=1", "eval.max_new_tokens=2",
        "track.mode=disabled",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("experiment=paper/gpt2 experiment/paper/row=sft,akl", ["sft", "akl"]),
        ("experiment=paper/abkd loss=ab", ["abkd-ab"]),
        pytest.param("experiment=paper/llama experiment/paper/row=akl", ["akl"], marks=pytest.mark.large),
        pytest.param("experiment=paper/abkd_llama loss=ab", ["abkd-ab"], marks=pytest.mark.large),
    ],
)
def test_a_dry_run_goes_through_ten_steps_evaluation_and_comparison(
    words: str, names: list[str], dry: list[str], run_here: Kdrun, tmp_path: Path
) -> None:
    from kdrun.commands.compare import compare

    table = tmp_path / "outputs" / "table"
    suites = "eval.suites=[dolly,sni,unni]"
    done = run_here("sweep", *words.split(), *dry, suites, f"hydra.sweep.dir={table}")
    assert all(f"{name} (random weights)" in done.stdout for name in [*names, "teacher"])
    for cell, name in enumerate(names):
        record = read_json(table / str(cell) / "run.json")
        assert (record["name"], record["random_init"], record["status"]) == (name, True, "done")
        summary = read_json(table / str(cell) / "summary.json")
        assert summary["steps"] == 10
        assert {f"eval/{suite}/sample/rouge_l" for suite in ("dolly", "sni", "unni")} <= summary.keys()
    compare([table], baselines=[names[0]], csv=tmp_path / "table.csv")
    header, first, *_ = (tmp_path / "table.csv").read_text().splitlines()
    assert dict(zip(header.split(","), first.split(","), strict=True))["pair.random_init"] == "True"
    shutil.rmtree(tmp_path / "outputs")  # gigabytes


def test_random_weights_serve_a_fine_tuned_teacher_a_resumed_run_and_an_evaluation(
    dry: list[str], run_here: Kdrun, tmp_path: Path
) -> None:
    shape = {"model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "vocab_size": 400, "n_positions": 128}
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(shape))
    words = ["experiment=paper/gpt2", *dry, "pair.teacher=tiny", "pair.student=tiny"]
    tuned = ["role=teacher", "experiment/paper/row=sft", "train.save_every=10", "evaluate=false"]
    run_here("train", *words, *tuned, "hydra.run.dir=outputs/teacher")
    made = {
        path.parent.name: path.read_bytes() for path in tmp_path.glob("outputs/random_init/gpt2-*/model.safetensors")
    }
    assert len(made) == 2
    assert {read_json(tmp_path / "outputs/random_init" / name / "config.json")["n_layer"] for name in made} == {1}
    run_here("train", "resume=outputs/teacher", "train.max_steps=12")
    record = read_json(tmp_path / "outputs" / "teacher" / "run.json")
    assert (record["random_init"], record["resumed_from_step"]) == (True, 10)

    scored = [word for word in words if word.startswith(("pair.", "data.", "eval.", "track."))] + [
        "eval.suites=[dolly]"
    ]
    run_here("evaluate", "pair=gpt2", "eval=paper_suites", "role=teacher", *scored, "hydra.run.dir=outputs/scored")
    record = read_json(tmp_path / "outputs" / "scored" / "run.json")
    assert record["random_init"] and Path(record["subject"]).name in made
    shutil.rmtree(tmp_path / "outputs" / "random_init")
    run_here("evaluate", "pair=gpt2", "eval=paper_suites", "role=teacher", *scored, "hydra.run.dir=outputs/again")
    again = {
        path.parent.name: path.read_bytes() for path in tmp_path.glob("outputs/random_init/gpt2-*/model.safetensors")
    }
    assert again == made
    refused = run_here("evaluate", "pair=gpt2", "eval=paper_suites", "role=sft", *scored, check=False)
    assert refused.returncode == 2 and "names no published fine-tuned student" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pair.tokenizer=null"], "the tokenizer of gpt2 is not on this machine; type pair.tokenizer=FOLDER"),
        (["pair.name=other"], "no shape in conf/pair/_shapes.yaml for the teacher of other; type pair.teacher=FOLDER"),
        (["pair.random_init=false"], "pair.layers=1: the checkpoints say it; leave it out, or type pair.random_init"),
        (["data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["eval.suites_path=nowhere"], "eval.suites_path=nowhere: no such folder"),
    ],
)
def test_what_random_weights_lack_is_one_line_and_exit_2(
    words: list[str], said: str, dry: list[str], run_here: Kdrun, tmp_path: Path
) -> None:
    done = run_here("train", "experiment=paper/gpt2", *dry, *words, check=False)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/random_init/*"))
