"""Mistakes at the command line: one line naming key, value, what is allowed; exit code 2; nothing heavy loaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.launch import launch
from tests.conftest import run_kdrun

TRAIN = {
    "los=akl": ["unknown key 'los'", "did you mean 'loss'"],
    "trian.lr=3": ["unknown key 'trian.lr'", "did you mean 'train.lr'"],
    "train.lrr=3": ["unknown key 'train.lrr'", "did you mean 'train.lr'"],
    "loss=aklx": ["no loss=aklx", "did you mean 'akl'", "fkl"],
    "pair=gpt3": ["no pair=gpt3", "gpt2"],
    "mu=2": ["mu=2", "above 0 and below 1", "mu=0.5"],
    "mu=0": ["mu=0", "above 0 and below 1"],
    "mu=abc": ["mu=abc", "a number"],
    "mu=nan": ["mu=nan", "above 0"],
    "mu=": ["mu=", "a number"],
    "mu": ["mu", "KEY=VALUE"],
    "mu=0.3,0.5": ["mu=0.3,0.5", "kdrun sweep"],
    "loss=fkl mu=0.5": ["unknown key 'mu'", "loss=fkl does not take it", "akl,gap"],
    "loss=sft kd_ratio=0.5": ["unknown key 'kd_ratio'", "loss=sft"],
    "loss=jsd beta=1.5": ["beta=1.5", "at least 0 and at most 1"],
    "loss=akl head=papr": ["head=papr", "code, paper, pointwise"],
    "loss=akl reversed=maybe": ["reversed=maybe", "true or false"],
    "kd_ratio=-0.1": ["kd_ratio=-0.1", "at least 0 and at most 1", "kd_ratio=0.5"],
    "temperature=0": ["temperature=0", "above 0"],
    "+foo=3": ["unknown key 'foo'"],
    "+loss.foo=3": ["unknown key 'loss.foo'"],
    "seed=-1": ["seed=-1", "a whole number at least 0"],
    "seed=1.5": ["seed=1.5", "a whole number"],
    "train.lr=0": ["train.lr=0", "above 0"],
    "train.max_steps=0": ["train.max_steps=0", "at least 1"],
    "train.betas=[0.9,2]": ["train.betas.1=2", "less than 1"],
    "train.precision=fp8": ["train.precision=fp8", "auto, fp32, bf16"],
    "train.micro_batch_size=0": ["train.micro_batch_size=0", "at least 1 or null"],
    "track.mode=onlin": ["track.mode=onlin", "auto, online, offline, disabled"],
    "data=jsonl": ["data.path= is required"],
    "data=jsonl data.path=nope.jsonl": ["data.path", "nope.jsonl"],
    "data=unicode data.path=x": ["unknown key 'data.path'", "data=unicode does not take it", "jsonl"],
    "data.max_tokens=20": ["data.max_prompt_tokens=48", "data.max_tokens=20"],
    "pair.teacher_heads=5": ["pair.teacher_heads=5", "pair.teacher_width=192"],
    "pair.tokenizer=nowhere": ["pair.tokenizer=nowhere", "tokenizer.json"],
    "pair.student=./nowhere": ["pair.student=./nowhere", "no such folder"],
    "pair.teacher=./nowhere": ["pair.teacher=./nowhere", "no such folder"],
    "pair=gpt2 pair.teacher=./nowhere": ["pair.teacher=./nowhere", "no such folder"],
    "pair=gpt2 pair.vocab_size=300": ["unknown key 'pair.vocab_size'", "pair=gpt2 does not take it"],
    "role=teacher": ["role=teacher needs loss=sft", "loss=akl"],
    "role=tutor": ["role=tutor", "student, teacher"],
    "resume=nowhere": ["resume=nowhere", "no such folder"],
    "name=a/b": ["name=a/b"],
    "eval.seeds=[1,1]": ["eval.seeds=[1, 1]", "twice"],
    "eval.top_p=0": ["eval.top_p=0", "above 0 and at most 1"],
    "hydra/launcher=jobli": ["no hydra/launcher=jobli"],
    "loss={a:1": ["KEY=VALUE"],
    "-cd nowhere": ["--config-dir nowhere", "no such folder"],
    "-m loss=akl,fkl mu=0.3,0.5": ["unknown key 'mu'", "loss=fkl does not take it"],
    "-m mu=0.3,0.5,2": ["mu=2", "above 0 and below 1"],
    "-m mu=interval(0,1)": ["interval", "sweeper"],
    "-m seed=1,2 train.lr=1,-1": ["train.lr=-1", "above 0"],
}
EVALUATE = {
    "": ["exactly one of run=DIR, student=PATH, pair=NAME"],
    "student=x/y": ["data"],
    "student=x/y pair=tiny": ["exactly one", "student= and pair="],
    "run=nowhere": ["run=nowhere", "no such folder"],
    "student=./nowhere data=unicode": ["student=./nowhere", "no such folder"],
    "student=x/y data=unicode role=sft": ["role=sft"],
    "pair=llama data=unicode role=sft": ["role=sft", "llama"],
    "student=x/y data=unicode mu=0.5": ["unknown key 'mu'"],
}


def refused(command: str, typed: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command prints before it exits with 2."""
    with pytest.raises(SystemExit) as stop:
        launch(command, typed.split(), CONF)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == "" and err.count("\n") == 1 and err.startswith("kdrun: "), err
    return err


@pytest.mark.parametrize("typed", TRAIN)
def test_a_mistake_in_train_is_one_line(
    typed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused("train", typed, capsys)
    for part in TRAIN[typed]:
        assert part in line
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize("typed", EVALUATE)
def test_a_mistake_in_evaluate_is_one_line(
    typed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused("evaluate", typed, capsys)
    for part in EVALUATE[typed]:
        assert part in line
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_bad_json_line_is_named_with_file_and_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": \n')
    assert "rows.jsonl:2" in refused("train", "data=jsonl data.path=rows.jsonl", capsys)


def test_a_folder_that_holds_a_run_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("there/run.json").write_text("{}")
    line = refused("train", "hydra.run.dir=there", capsys)
    assert "there" in line and "resume=there" in line
    assert Path("there/run.json").read_text() == "{}"


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_help_loads_neither_hydra_nor_torch() -> None:
    modules = modules_after(
        "from typer.testing import CliRunner\nfrom kdrun.cli import app\nCliRunner().invoke(app, ['--help'])"
    )
    assert not modules & {"hydra", "omegaconf", "torch", "transformers", "wandb", "datasets"}


def test_a_refused_command_loads_no_torch() -> None:
    code = "from kdrun.cli import CONF\nfrom kdrun.launch import launch\n"
    code += "try:\n    launch('train', ['mu=2'], CONF)\nexcept SystemExit: pass"
    assert not modules_after(code) & {"torch", "transformers", "wandb", "datasets", "bert_score", "rouge_score"}


def test_help_lists_the_losses_and_the_commands() -> None:
    help_ = subprocess.run([sys.executable, "-m", "kdrun", "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("train", "evaluate", "sweep", "compare", "show"):
        assert re.search(rf"\b{command}\b", help_)
    help_ = subprocess.run(
        [sys.executable, "-m", "kdrun", "train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for path in (CONF / "loss").glob("[a-z]*.yaml"):
        assert re.search(rf"\b{path.stem}\b", help_), path.stem


def test_an_unknown_command_is_refused_with_a_suggestion() -> None:
    done = subprocess.run([sys.executable, "-m", "kdrun", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "train" in done.stderr


def test_hydras_own_flags_keep_working(tmp_path: Path) -> None:
    """--cfg job prints the composed config, --config-dir adds a group file, -h is Hydra's help."""
    folder = tmp_path / "mine" / "loss"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [akl]\nmu: 0.25\n")

    def out(*words: str) -> str:
        return run_kdrun(*words, cwd=tmp_path).stdout

    printed = out("train", "loss=mine", "--cfg", "job", "--config-dir", "mine")
    assert "name: akl" in printed and "mu: 0.25" in printed
    assert "mu: 0.4" in out("train", "--cfg", "job", "mu=0.4")
    assert "train" in out("train", "-h")
    assert "mu: 0.7" in out("show", "loss=akl", "mu=0.7")
    assert "greedy: false" in out("show", "evaluate", "student=a/b", "data=unicode", "eval=paper")
    assert not (tmp_path / "outputs").exists()
