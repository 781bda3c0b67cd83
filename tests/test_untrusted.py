"""What someone sent (words, configs, run directories, models, caches) executes nothing, writes nothing elsewhere, and
shows as text. Each attack carries a payload that would leave the file `ran` if it were executed."""

import ast
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdrun.cli import CONF
from kdrun.launch import cache, show
from kdrun.models.loading import save_model
from kdrun.models.scratch import make_model, train_tokenizer

from .conftest import SMALL, Kdrun

PACKAGE = Path(__file__).parents[1] / "kdrun"
SHORT = [*SMALL, "train.max_steps=1", "train.save_every=null", "evaluate=false"]


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def evil(ran: Path) -> Any:
    """An object whose unpickling creates a file."""

    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {ran}",)

    return Evil()


def refused(done: Any, *fragments: str) -> str:
    """The one line of a command that was refused."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("kdrun: ") and len(done.stderr.splitlines()) <= 2
    assert all(fragment in line for fragment in fragments), line
    return line


# -- words and config files --------------------------------------------------------------------------------------------

WORDS = {
    "a launcher": ("sweep", "seed=1,2 hydra.launcher._target_=evil_package.run", "hydra.launcher._target_"),
    "a sweeper": ("sweep", "seed=1,2 hydra.sweeper._target_=evil_package.run", "hydra.sweeper._target_"),
    "a callback": ("train", "+hydra.callbacks.x._target_=evil_package.run", "hydra.callbacks.x"),
    "a model": ("train", "+model._target_=os.system", "model"),
    "a pair": ("train", "+pair._target_=os.system", "pair._target_"),
    "a log's class": ("train", "hydra.job_logging.handlers.console.class=subprocess.Popen", "job_logging"),
    "a log's stream": ("train", "hydra.job_logging.handlers.console.stream=ext://os.environ", "job_logging"),
    "a log's place": ("train", "hydra.job_logging.handlers.file.filename=RAN", "leaves the run directory"),
    "an environment": ("train", "+hydra.job.env_set.LD_PRELOAD=RAN", "hydra.job.env_set.LD_PRELOAD"),
    "a package": ("train", "hydra.searchpath=[pkg://evil_package]", "hydra.searchpath"),
    "a pickle": ("train", "--experimental-rerun RAN.pickle", "--experimental-rerun"),
    "another conf": ("train", "--config-path CONF", "--config-path"),
    "a factory in a config file": ("train", "--config-dir CONF experiment=log", "job_logging"),
    "a target in a config file": ("sweep", "--config-dir CONF experiment=launcher seed=1,2", "hydra.launcher._target_"),
    "a node's shell": ("sweep", "--config-dir CONF experiment=setup hydra/launcher=submitit_slurm seed=1,2", "setup"),
    "a config of one's own": ("train", "--config-dir CONF --config-name own", "hydra.searchpath"),
    "remote code": ("train", "--config-dir CONF experiment=remote pair=qwen2.5", "pair.trust_remote_code"),
}
FILES = {
    "experiment/log": {
        "hydra": {"job_logging": {"handlers": {"x": {"()": "subprocess.getoutput", "cmd": "touch RAN"}}}}
    },
    "experiment/launcher": {"hydra": {"launcher": {"_target_": "evil_package.run"}}},
    "experiment/setup": {"hydra": {"launcher": {"setup": ["touch RAN"]}}},
    "experiment/remote": {"pair": {"trust_remote_code": True}},
    "own": {"defaults": ["train", "_self_"], "hydra": {"searchpath": ["pkg://evil_package"]}},
}


@pytest.mark.parametrize("name", WORDS)
def test_no_word_and_no_config_file_makes_hydra_run_something_else(
    name: str, ran: Path, kdrun_here: Kdrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, package = tmp_path / "conf", tmp_path / "evil_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for file, content in FILES.items():
        path = conf / f"{file}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "" if file == "own" else "# @package _global_\n"
        path.write_text(head + yaml.safe_dump(content).replace("RAN", str(ran)))
    Path(f"{ran}.pickle").write_bytes(pickle.dumps(evil(ran)))
    command, words, fragment = WORDS[name]
    words = words.replace("RAN", str(ran)).replace("CONF", str(conf))
    before = set(Path.cwd().rglob("*"))
    tiny = [] if "pair=" in words else SHORT  # without the guard, all would go on to the payload
    done = kdrun_here(command, *tiny, *words.split(), check=False)
    refused(done, fragment)
    assert not ran.exists()
    assert set(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("look", [lambda words: show("train", words), lambda words: cache(words, CONF)])
def test_every_command_refuses_a_conf_of_another_place(
    look: Callable[[list[str]], None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        look([*SHORT, "--config-path", str(tmp_path)])
    assert ended.value.code == 2
    assert "--config-path: kdrun has its own" in capfd.readouterr().err


# -- records -----------------------------------------------------------------------------------------------------------


def save(folder: Path) -> Path:
    model = make_model(vocab_size=260, context=16, layers=1, width=8, heads=2, end_id=0, seed=0)
    save_model(model, train_tokenizer(["text"], vocab_size=260), folder)
    return folder


def sent_run(folder: Path, overrides: list[str], config: str = "{}\n") -> Path:
    folder.mkdir()
    record = {"command": "train", "status": "failed", "overrides": overrides, "started": "2026-01-01T00:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("hydra.launcher._target_=os.system", "no record of kdrun"),
        ("hydra.run.dir=/elsewhere", "no record of kdrun"),
        ("+hydra.job.env_set.A=b", "no record of kdrun"),
        ("--experimental-rerun=x.pickle", "no KEY=VALUE"),
        ("name=${oc.env:HOME}", "type name=VALUE yourself"),
        ("name=${oc.${x}:HOME}", "environment"),
        ("pair.trust_remote_code=true", "type it to allow it"),
    ],
)
def test_words_of_a_record_that_reach_beyond_the_run_are_refused(
    word: str, fragment: str, kdrun_here: Kdrun, tmp_path: Path
) -> None:
    run = sent_run(tmp_path / "run", ["pair=qwen2.5", word])
    refused(kdrun_here("train", f"resume={run}", check=False), fragment)
    assert {path.name for path in run.iterdir()} == {"run.json", "config.yaml"}


@pytest.mark.parametrize(
    "change",
    [
        {"words": ["hydra.launcher._target_=os.system"]},
        {"words": ["hydra/launcher=submitit_slurm", "hydra.launcher.setup=[evil]"]},
        {"words": ["hydra.callbacks.x._target_=os.system"]},
        {"flags": ["--experimental-rerun", "x"]},
        {"flags": ["--config-path", "x"]},
    ],
)
def test_a_sweeps_record_chooses_no_program(change: dict, kdrun_here: Kdrun, tmp_path: Path) -> None:
    sweep = {"command": "train", "flags": [], "words": [], "directory": os.getcwd(), "cells": [[]], "fixed": [],
             "total": 1, "attempts": []}  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(sweep | change))
    refused(kdrun_here("sweep", f"resume={tmp_path}", check=False), "its record holds")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize("command", ["train resume", "evaluate run"])
def test_yaml_tags_of_a_stored_config_build_nothing(command: str, ran: Path, run_here: Kdrun, tmp_path: Path) -> None:
    run = sent_run(tmp_path / "run", [], f"a: !!python/object/apply:os.system ['touch {ran}']\n")
    save(run / "student")
    name, key = command.split()
    refused(
        run_here(name, f"{key}={run}", *(["data=unicode"] if name == "evaluate" else []), check=False), "config.yaml"
    )
    assert not ran.exists()


@pytest.mark.parametrize("link", ["metrics.jsonl", "checkpoints", "student", "wandb", "eval/quick"])
def test_a_run_directory_with_a_link_out_of_it_is_not_written_to(link: str, kdrun_here: Kdrun, tmp_path: Path) -> None:
    run = sent_run(tmp_path / "run", [])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(elsewhere)
    for command, key in (("train", "resume"), ("evaluate", "run")):
        refused(kdrun_here(command, f"{key}={run}", check=False), f"{key}={run}", f"{run / link} is a link out")
    assert not list(elsewhere.iterdir())


def test_links_that_stay_inside_are_let_be_and_one_that_leads_out_is_not(tmp_path: Path) -> None:
    from kdrun.errors import UserError
    from kdrun.untrusted import refuse_links_out

    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "wandb" / "debug.log").symlink_to("/somewhere/that/is/gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "there").symlink_to(tmp_path / "wandb")
    refuse_links_out(tmp_path, key="resume")
    (tmp_path / "out").symlink_to("/")
    with pytest.raises(UserError, match=r"resume.*out is a link out"):
        refuse_links_out(tmp_path, key="resume")


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_control_characters_of_a_record_do_not_reach_the_terminal(
    capfd: pytest.CaptureFixture[str], kdrun_here: Kdrun, tmp_path: Path
) -> None:
    from kdrun.commands.cache_list import print_table
    from kdrun.commands.compare import compare

    nasty = "\x1b]0;owned\x07\x1b[2J\u202etxt\x9b31m"
    run = sent_run(tmp_path / "run", [], yaml.safe_dump({"a": nasty, "role": "student", nasty: 1}))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"name": nasty, "status": "done"}))
    (run / "summary.json").write_text(json.dumps({f"valid/{nasty}": 1.0}))
    compare([run], every_metric=True)
    print_table(["a"], [[nasty]])
    shown = capfd.readouterr().out
    assert r"\x1b]0;owned\x07" in "".join(shown.split())
    said = kdrun_here("train", f"resume={tmp_path}/{nasty}", check=False).stderr
    for text in (shown, said):
        assert not [c for c in text if c != "\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c == "\u202e")], repr(
            text
        )


# -- secrets -----------------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    "word", [f"track.project={TOKEN}", "track.entity=https://me:hunter2@host/x", "name=of-a-variable-0123"]
)
def test_a_key_or_a_password_that_is_typed_is_refused_and_not_shown(
    word: str, kdrun_here: Kdrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "of-a-variable-0123")
    before = set(Path.cwd().rglob("*"))
    key, value = word.split("=")
    line = refused(kdrun_here("train", *SHORT, word, check=False), f"{key}: holds", "environment")
    assert value not in line and "hunter2" not in line
    assert set(Path.cwd().rglob("*")) == before


def test_secrets_of_an_error_reach_neither_the_record_nor_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    from kdrun.runs.directory import RunDirectory
    from kdrun.secrecy import Formatter

    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    said = f"401 for https://me:hunter2@host/x with {TOKEN} and 0123456789abcdef0123"
    run = RunDirectory.start(tmp_path / "run", command="train", config={}, overrides=[])
    with pytest.raises(ValueError, match="401"), run.recorded():
        raise ValueError(said)
    log = Formatter().format(logging.LogRecord("n", 40, "p", 1, said, (), None))
    for text in ((tmp_path / "run/run.json").read_text(), log):
        assert "https://[login]@host/x with [key] and [$WANDB_API_KEY]" in text
        assert not [secret for secret in ("hunter2", TOKEN, "0123456789abcdef0123") if secret in text]


# -- the code itself ---------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load", "importlib.import_module", "runpy.run_path",
    "hydra.utils.instantiate", "hydra.utils.call", "instantiate", "marshal.loads", "shelve.open", "joblib.load",
}  # fmt: skip
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
# Programs with fixed words, none of them from a file: the driver's list of GPUs, git, the C compiler, kdrun itself.
MAY_START_PROGRAMS = {
    "runs/gpus.py", "runs/provenance.py", "native/compiled.py", "bench/startup.py",
    "commands/launching.py",  # itself, once a rank
}  # fmt: skip
# yaml.load with a subclass of SafeLoader that refuses one tag more than it.
MAY_LOAD_YAML = {"evaluation/harness.py"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_unpickles_evaluates_or_starts_a_shell(path: Path) -> None:
    name, tree = str(path.relative_to(PACKAGE)), ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            heads = (
                {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else {node.module}
            )
            assert not heads & PICKLING, f"{name}:{node.lineno}"
            assert "subprocess" not in heads or name in MAY_START_PROGRAMS, f"{name}:{node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert called not in FORBIDDEN, f"{name}:{node.lineno} {called}"
        assert called != "yaml.load" or name in MAY_LOAD_YAML, f"{name}:{node.lineno}"
        assert keywords.get("shell", "False") == "False", f"{name}:{node.lineno}"
        if called.endswith(".from_pretrained"):
            assert keywords.get("trust_remote_code") in ("False", "trust_remote_code"), f"{name}:{node.lineno}"
            if "Model" in called:
                assert "use_safetensors" in keywords, f"{name}:{node.lineno}"
