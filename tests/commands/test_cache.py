"""kdrun cache and teacher=cached: the real command, from building to a sweep that costs one teacher pass."""

import json
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.commands.cache_list import list_caches
from kdrun.launch import cache, launch
from kdrun.teachers import building, store
from tests.conftest import SMALL, Kdrun, read_json, read_lines, run_kdrun
from tests.forked import Forked

WORDS = [*SMALL, "train.max_steps=4"]
CELLS = [*WORDS, "evaluate=false"]
Usage = namedtuple("Usage", "total used free")
# What a run measures of itself, not of its models.
TIMED = ("_s", "peak_memory_gib", "teacher_share")
# Small shards, so that tiny sets have several; then what the test adds.
PATCHED = (
    "from kdrun.teachers import building, store\nbuilding.build.__kwdefaults__['shard_bytes'] = 4096\n"
    "write = store.PartialStore.write_shard\n{}\nfrom kdrun.cli import main\nmain()\n"
)


def sets(group: Path) -> dict[str, Path]:
    return {folder.name.split("-")[0]: folder for folder in group.iterdir() if folder.is_dir()}


class Here:
    """The command in this process, for speed: the same words, the same code; what it says is kept."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd, self.out, self.err = folder, capfd, "", ""

    def __call__(self, *words: str, code: int = 0) -> "Here":
        self.capfd.readouterr()
        ended = 0
        try:
            if words[0] == "cache":
                cache(words[1:], CONF)
            else:
                launch("train", ["--multirun", *words[1:]] if words[0] == "sweep" else words[1:], CONF)
        except SystemExit as error:
            ended = int(error.code or 0)
        self.out, self.err = self.capfd.readouterr()
        assert ended == code, self.err
        return self

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return self.err.splitlines()[-1]


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    monkeypatch.chdir(workspace)
    return Here(workspace, capfd)


def group_of(directory: Path) -> Path:
    (group,) = [folder for folder in directory.iterdir() if folder.is_dir()]
    return group


def numbers(folder: Path) -> dict[str, float]:
    summary = read_json(folder / "summary.json")
    return {key: value for key, value in summary.items() if not key.endswith(TIMED)}


def assert_equal_but_for_rounding(ours: Path, theirs: Path) -> None:
    found, expected = numbers(ours), numbers(theirs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=2e-5, abs=1e-7), key


@pytest.fixture(scope="module")
def built(workspace: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """The caches of the main job, made ahead; a sweep of another file may have made the same."""
    shutil.rmtree(workspace / "outputs" / "cache", ignore_errors=True)
    return workspace / "outputs" / "cache", run_kdrun("cache", *WORDS, cwd=workspace)


@pytest.fixture
def group(built: tuple[Path, subprocess.CompletedProcess]) -> Path:
    """The folder of the caches made ahead."""
    return Path(built[1].stdout.splitlines()[1].split()[-1]).parent


def test_the_command_prints_one_line_a_set_with_rows_tokens_sizes_time_and_place(
    built: tuple[Path, subprocess.CompletedProcess], group: Path, workspace: Path
) -> None:
    done = built[1]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["cache", "rows", "tokens", "size", "bytes/token", "seconds", "where"]
    assert [line[0] for line in lines[1:]] == ["train", "valid", "eval"]
    assert [line[1] for line in lines[1:]] == ["64", "8", "6"]
    for line in lines[1:]:
        manifest = read_json(workspace / line[-1] / "manifest.json")
        assert int(line[2]) == manifest["tokens"]
        assert int(line[-3]) == manifest["row_bytes"] == 16 * 4
        assert (workspace / line[-1] / "states-00000.bin").stat().st_size == manifest["tokens"] * 64
    assert "one pass of outputs/teachers/tiny-unicode over train, valid, eval" in done.stderr
    assert " free" in done.stderr
    files = [path.name for path in (workspace / group).iterdir() if path.is_file()]
    assert files == ["head.safetensors"]


def test_a_sweeps_words_are_those_of_one_cache(built: tuple[Path, subprocess.CompletedProcess], here: Here) -> None:
    here("cache", "loss=akl", "mu=0.3,0.5", *WORDS)
    assert here.out.count("was there") == 3
    assert "pass" not in here.err


def test_the_manifest_says_what_the_cache_was_made_of(group: Path, workspace: Path) -> None:
    import torch
    import transformers

    manifest = read_json(sets(workspace / group)["train"] / "manifest.json")
    identity = manifest["identity"]
    assert {"teacher": "outputs/teachers/tiny-unicode", "data": "unicode", "rows": 64}.items() <= manifest.items()
    hashes = ("config", "weights", "tokenizer", "data", "rows")
    assert all(len(identity[f"{name}_sha256"]) == 64 for name in hashes)
    assert identity["dtype"] == "fp32"
    assert {"template": "plain", "max_prompt_tokens": 48, "max_tokens": 96, "overlong": "drop"}.items() <= (
        identity.items()
    )
    assert identity["torch"] == torch.__version__.split("+")[0]
    assert identity["transformers"] == transformers.__version__
    assert "cache" in manifest["made"]["argv"][1]


def test_a_cached_sweep_is_the_live_sweep_and_costs_one_teacher_pass(here: Here, workspace: Path) -> None:
    """Training, validation and final evaluation of every cell; the first cell builds, the others read."""
    words = ["loss=akl", "mu=0.3,0.5,0.7", *WORDS]
    here("sweep", "teacher=live", *words, "hydra.sweep.dir=outputs/sweep/live")
    here("sweep", "teacher=cached", "cache.directory=swept", *words, "hydra.sweep.dir=outputs/sweep/cached")
    logs = [(workspace / "outputs" / "sweep" / "cached" / str(cell) / "log.txt").read_text() for cell in range(3)]
    assert [log.count("one pass of") for log in logs] == [1, 0, 0]
    for cell in range(3):
        ours, theirs = (workspace / "outputs" / "sweep" / name / str(cell) for name in ("cached", "live"))
        assert_equal_but_for_rounding(ours, theirs)
        assert {"eval/fkl", "valid/fkl", "train/fkl", "train/divergence"} <= numbers(ours).keys()
        teacher = read_json(ours / "run.json")["teacher"]
        assert teacher["source"] == "cached"
        assert [teacher["sets"][name]["made_here"] for name in ("train", "valid", "eval")] == [cell == 0] * 3
        manifest = read_json(workspace / teacher["sets"]["train"]["path"] / "manifest.json")
        assert teacher["sets"]["train"]["manifest_sha256"] == manifest["sha256"]
        assert teacher["sets"]["train"]["bytes"] == sum(entry["bytes"] for entry in manifest["files"].values())
        examples = [
            [{k: v for k, v in line.items() if isinstance(v, float)} for line in read_lines(run / "eval/quick" / f)]
            for run in (ours, theirs) for f in ("examples.jsonl",)
        ]  # fmt: skip
        for one, other in zip(*examples, strict=True):
            assert one == pytest.approx(other, rel=2e-5, abs=1e-7)
    list_caches(Path("swept"))
    assert here.capfd.readouterr().out.count("3 runs, last 20") == 3


def test_a_llama_pair_sweeps_from_a_cache_as_it_does_live(workspace: Path, here: Here) -> None:
    """Untied heads padded to different widths, several losses and temperatures."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(workspace / "outputs/teachers/tiny-unicode/teacher")
    for role, width, rows in (("teacher", 16, 320), ("student", 8, 304)):
        config = hf.LlamaConfig(
            vocab_size=rows, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=False, eos_token_id=0,
        )  # fmt: skip
        hf.LlamaForCausalLM(config).save_pretrained(workspace / "llamas" / role)
        tokenizer.save_pretrained(workspace / "llamas" / role)
    small = [word for word in CELLS if not word.startswith("pair.")]
    words = ["pair=gpt2", "pair.teacher=llamas/teacher", "pair.student=llamas/student", "data=unicode", "train=tiny",
             *small, "loss=jsd,fkl", "temperature=1,2"]  # fmt: skip
    here("sweep", "teacher=live", *words, "hydra.sweep.dir=outputs/sweep/llama-live")
    here("sweep", "teacher=cached", "teacher.directory=llamas/cache", *words,
         "hydra.sweep.dir=outputs/sweep/llama-cached")  # fmt: skip
    for cell in range(4):
        ours, theirs = (workspace / "outputs/sweep" / f"llama-{name}" / str(cell) for name in ("cached", "live"))
        assert_equal_but_for_rounding(ours, theirs)
        assert read_json(ours / "run.json")["shared_vocabulary"] == 304
        assert set(read_json(ours / "run.json")["teacher"]["sets"]) == {"train", "valid"}


def test_a_run_needs_no_body_of_the_teacher(group: Path, workspace: Path, here: Here) -> None:
    """The teacher's weights are gone: a named cache serves the whole run; without a name the run is refused."""
    elsewhere = workspace / "bodyless"
    shutil.copytree(workspace / "outputs/teachers/tiny-unicode/teacher", elsewhere)
    (elsewhere / "model.safetensors").unlink()
    words = ["teacher=cached", "pair.teacher=bodyless", *WORDS]
    here("train", *words, f"teacher.path={group}", "loss=rkl", "hydra.run.dir=outputs/cached/bodyless")
    assert "no weights at bodyless, so their hash is not compared" in here.err
    assert read_json(workspace / "outputs/cached/bodyless/summary.json")["eval/fkl"] > 0
    here("train", *words, "hydra.run.dir=outputs/cached/nameless", code=2)
    assert "no weights there" in here.last and "teacher.path=DIR" in here.last


def test_fine_tuning_that_watches_the_teacher_caches_what_it_watches_on(here: Here, workspace: Path) -> None:
    words = ["loss=sft", *WORDS, "cache.directory=watched"]
    here("train", "teacher=cached", *words, "hydra.run.dir=outputs/cached/watch")
    assert sorted(sets(group_of(workspace / "watched"))) == ["eval", "valid"]
    assert read_json(workspace / "outputs/cached/watch/summary.json")["valid/fkl"] > 0
    here("train", "teacher=cached", "train.watch_teacher=false", *words, "evaluate=false",
         "hydra.run.dir=outputs/cached/alone")  # fmt: skip
    assert "teacher cache:" not in here.err
    assert "teacher" not in read_json(workspace / "outputs/cached/alone/run.json")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["data.max_tokens=80", "pair.context=96"], "max_tokens=96, this run max_tokens=80"),
        (["data.max_prompt_tokens=40"], "max_prompt_tokens=48, this run max_prompt_tokens=40"),
        (["data.overlong=truncate"], "overlong=drop, this run overlong=truncate"),
        (["data.max_rows=63"], "data_sha256="),
        (["train.valid_rows=7"], "data_sha256="),
        (["cache.topk=5"], "topk=null, this run topk=5"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_named_cache_of_another_setting_is_refused_in_one_line_with_the_field(
    words: list[str], field: str, group: Path, here: Here
) -> None:
    # A teacher of one's own is not compared with the data that kdrun made it for.
    own = [
        "pair.teacher=outputs/teachers/tiny-unicode/teacher",
        f"hydra.run.dir=outputs/cached/refused/{words[0].replace(chr(61), chr(45))}",
    ]
    here("train", "teacher=cached", "loss=fkl", f"teacher.path={group}", *CELLS, *own, *words, code=2)
    assert here.last.startswith("kdrun: ") and f"path={group}: the cache " in here.last
    assert field in here.last.replace("cache.topk", "topk")


def test_another_teacher_is_another_cache_or_a_refusal(group: Path, workspace: Path, here: Here) -> None:
    shutil.copytree(workspace / "outputs/teachers/tiny-unicode/teacher", workspace / "altered")
    path = workspace / "altered" / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    words = ["teacher=cached", "loss=fkl", "pair.teacher=altered", *CELLS]
    here("train", *words, f"teacher.path={group}", "hydra.run.dir=outputs/cached/altered", code=2)
    assert "weights_sha256=" in here.last
    here("cache", *words)
    assert "one pass of altered" in here.err
    here("cache", *words, "data.max_rows=63")
    assert "none of this run's train rows yet; the nearest there differs in data_sha256, rows_sha256" in here.err


def test_a_damaged_shard_of_ones_own_cache_stops_the_run_in_one_line(here: Here, workspace: Path) -> None:
    words = ["loss=fkl", *CELLS, "teacher.directory=damaged"]
    here("cache", *words)
    shard = sets(group_of(workspace / "damaged"))["train"] / "states-00000.bin"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 16
    shard.write_bytes(content)
    here("train", "teacher=cached", *words, "hydra.run.dir=outputs/cached/damaged", code=2)
    assert "states-00000.bin: does not have the sha256" in here.last
    assert f"rm -r {shard.parent.relative_to(workspace)}" in here.last
    shutil.rmtree(shard.parent)  # what the line says
    here("train", "teacher=cached", *words, "hydra.run.dir=outputs/cached/mended")
    assert here.err.count("over train:") == 1


def test_too_small_a_disk_is_refused_before_the_teacher_is_loaded(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    here("cache", *CELLS, "teacher.directory=full", code=2)
    assert here.last.startswith("kdrun: teacher.directory=full/") and "kB" in here.last and "1 MB are free" in here.last


def test_a_build_killed_half_way_goes_on_and_ends_with_the_same_bytes(
    workspace: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = (
        "import os\nseen = []\n"
        "def dies(self, shard, tokens):\n"
        "    seen.append(shard)\n    if len(seen) == 4: os.kill(os.getpid(), 9)\n    write(self, shard, tokens)\n"
        "store.PartialStore.write_shard = dies"
    )
    killed = Forked(PATCHED.format(dying), "cache", *CELLS, "teacher.directory=killed", cwd=workspace)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    list_caches(Path("killed"))
    assert "half-built (3 of " in here.capfd.readouterr().out
    made: list[int] = []
    write = store.PartialStore.write_shard
    monkeypatch.setattr(
        store.PartialStore, "write_shard", lambda self, n, tokens: (made.append(n), write(self, n, tokens))
    )
    monkeypatch.setitem(building.build.__kwdefaults__, "shard_bytes", 4096)
    here("cache", *CELLS, "teacher.directory=killed")
    assert made[0] == 3, "the shards that were there are not made again"
    here("cache", *CELLS, "teacher.directory=unkilled")
    for name, folder in sets(group_of(workspace / "killed")).items():
        other = sets(group_of(workspace / "unkilled"))[name]
        files = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".safetensors"))
        assert len(files) > 2
        for file in files:
            assert (folder / file).read_bytes() == (other / file).read_bytes(), (name, file)
    list_caches(Path("killed"))
    assert "half-built" not in here.capfd.readouterr().out


def test_two_processes_that_want_the_same_cache_build_it_once(workspace: Path, here: Here) -> None:
    slow = (
        "import time\ndef slow(self, shard, tokens):\n    time.sleep(0.5)\n    write(self, shard, tokens)\n"
        "store.PartialStore.write_shard = slow"
    )
    first = Forked(PATCHED.format(slow), "cache", *CELLS, "teacher.directory=both", cwd=workspace)
    for _ in range(600):
        if list((workspace / "both").glob("*/*.partial")):
            break
        time.sleep(0.05)
    here("train", "teacher=cached", *CELLS, "teacher.directory=both", "hydra.run.dir=outputs/cached/second")
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert "one pass of" in said and "one pass of" not in here.err
    assert "waiting, another process makes" in here.err
    made = read_json(workspace / "outputs/cached/second/run.json")["teacher"]["sets"]
    assert not any(entry["made_here"] for entry in made.values())


def test_the_list_shows_size_bytes_a_token_and_use(group: Path, kdrun: Kdrun) -> None:
    lines = kdrun("cache", "ls").stdout.splitlines()
    assert lines[0].split()[:6] == ["cache", "teacher", "rows", "tokens", "dtype", "size"]
    assert lines[0].split()[6:] == ["bytes/token", "read", "by", "state"]
    train = next(line for line in lines if f"{group}/train-" in line)
    assert "fp32" in train and " 64 " in train and train.endswith("whole")
    assert any("head.safetensors" in line for line in lines)
    assert lines[-1].endswith("in outputs/cache")
    assert kdrun("cache", "ls", "nowhere", check=False).returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=live"], "teacher=live: kdrun cache makes what teacher=cached reads"),
        (["role=teacher", "loss=sft"], "teacher=cached: role=teacher fine-tunes the teacher itself"),
        (["teacher.path=nowhere"], "teacher.path=nowhere: no such folder"),
        (["loss=sft", "train.watch_teacher=false", "evaluate=false"], "loss=sft: this run asks no teacher"),
        (["cache.topk=0"], "cache.topk=0: must be a whole number at least 1 or null"),
        (["cache.topk=5", "temperature=2"], "temperature=2.0: cache.topk=5 stores log-probabilities at temperature 1"),
        (["cache.size=5"], "unknown key 'cache.size'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(words: list[str], message: str, here: Here) -> None:
    here("cache", *SMALL, *words, code=2)
    assert message in here.last


def test_an_altered_manifest_is_refused_with_the_field(here: Here, workspace: Path) -> None:
    words = ["loss=fkl", *CELLS, "teacher.directory=forged"]
    here("cache", *words)
    path = sets(group_of(workspace / "forged"))["valid"] / "manifest.json"
    content = json.loads(path.read_text())
    content["identity"]["template"] = "alpaca"
    path.write_text(json.dumps(content))
    here("train", "teacher=cached", *words, "hydra.run.dir=outputs/cached/forged", code=2)
    assert "has template=alpaca, this run template=plain" in here.last


def test_a_lossy_cache_trains_and_says_what_it_leaves_out(here: Here, workspace: Path) -> None:
    words = ["teacher=cached", "cache.topk=20", "loss=fkl", *WORDS, "teacher.directory=lossy"]
    here("train", *words, "hydra.run.dir=outputs/cached/lossy")
    assert here.err.count("teacher.topk=20: against the untrained student") == 3
    assert "exact" in here.err and "lost)" in here.err
    summary = read_json(workspace / "outputs/cached/lossy/summary.json")
    assert {"valid/topk_fkl", "eval/topk_rkl", "valid/nll", "train/divergence"} <= summary.keys()
    assert "valid/fkl" not in summary, "a bound does not bear the name of the exact value"
    facts = read_json(workspace / "outputs/cached/lossy/run.json")["teacher"]["sets"]["train"]
    assert 0 < facts["truncation"]["share_lost"]["fkl"] < 1
    group = group_of(workspace / "lossy")
    assert "-top20-" in group.name
    assert not (group / "head.safetensors").exists()
    assert read_json(sets(group)["train"] / "manifest.json")["row_bytes"] == 20 * 8 + 4


def test_a_lossy_cache_refuses_what_it_cannot_serve_before_anything_is_loaded(here: Here) -> None:
    here("sweep", "teacher=cached", "cache.topk=20", "loss=fkl,akl", *CELLS, code=2)
    assert here.last.startswith("kdrun: cache.topk=20: a lossy cache cannot serve loss=akl (akl looks at ")
    assert "one of loss=fkl,rkl,fkl_rkl,jsd,tvd,skl,srkl,alpha" in here.last
    words = ["teacher=cached", "cache.topk=5000", "loss=fkl", *CELLS]
    here("train", *words, "hydra.run.dir=outputs/cached/too-many", code=2)
    assert "topk=5000: must be at most 300" in here.last
