"""rollout=teacher: what the pair's teacher writes, where it is kept, who reads it."""

import shutil
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.cli import CONF
from kdrun.commands.assembly import Models, build_models, load_data
from kdrun.commands.cache_list import list_caches
from kdrun.commands.teacher_texts import TeacherTexts, teacher_texts
from kdrun.compose import compose_cells
from kdrun.data.encoding import EncodedSet, encode
from kdrun.data.examples import Splits
from kdrun.launch import cache as build
from kdrun.models.loading import load_model
from kdrun.runs.directory import claim
from kdrun.words import read_flags
from tests.conftest import SMALL, Kdrun, read_json
from tests.evaluation.judge.loopback import Body, Reply, serving
from tests.rollouts.conftest import texts_of
from tests.rollouts.test_teacher_text import completes

TEACHER = "outputs/teachers/tiny-unicode"
KEY = "sk-never-to-be-seen-0123456789"


@pytest.fixture
def place(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own with the workspace's teacher."""
    shutil.copytree(workspace / TEACHER, tmp_path / TEACHER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*words: str) -> Any:
    return compose_cells("train", [*SMALL, "rollout=teacher", *words], read_flags([]), CONF)[0].config


@cache
def splits_of_unicode() -> Splits:
    return load_data(config_of().data)


def parts(*words: str, num_rows: int = 8) -> tuple[Any, Models, EncodedSet]:
    config, splits = config_of(*words), splits_of_unicode()
    models = build_models(config.pair, config.data, splits, role="student", seed=1)
    rows = encode(splits.train[:num_rows], models.tokenizer, template="plain", max_prompt_tokens=48, max_tokens=96)
    return config, models, rows


def written(*words: str, num_rows: int = 8) -> tuple[EncodedSet, dict[str, Any]]:
    return teacher_texts(*parts(*words, num_rows=num_rows), device="cpu")


def folder(*words: str, num_rows: int = 8) -> Path:
    return TeacherTexts(*parts(*words, num_rows=num_rows)).folder


def next_token_p(teacher: Any, prompt: list[int], *, temperature: float, top_k: int) -> np.ndarray:
    with torch.no_grad():
        logits_V = teacher(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature
    kept_V = logits_V >= logits_V.topk(top_k).values[-1]
    return logits_V.where(kept_V, -torch.inf).softmax(-1).numpy()


def test_first_tokens_come_as_often_as_the_teacher_says_with_the_temperature_and_top_k_of_the_rollout(
    place: Path,
) -> None:
    num = 3000
    words = ("rollout.temperature=0.7", "rollout.top_k=12", "rollout.max_new_tokens=1", "rollout.batch_size=500")
    config, models, rows = parts(*words, num_rows=1)
    found, facts = teacher_texts(config, models, rows.subset([0] * num), device="cpu")
    prompt = rows.prompt(0).tolist()
    p_V = next_token_p(load_model(TEACHER, key="k"), prompt, temperature=0.7, top_k=12)
    share_V = np.bincount([text[-1] for text in texts_of(found)], minlength=len(p_V)) / num
    assert (np.abs(share_V - p_V) <= 4 * np.sqrt(p_V * (1 - p_V) / num)).all()
    assert (facts["texts"], facts["tokens"], facts["mean_length"]) == (num, num, 1.0)
    ended = np.mean([text[-1] == models.tokenizer.eos_token_id for text in texts_of(found)])
    assert facts["finished_share"] == pytest.approx(ended)


def test_greedy_text_is_that_of_transformers(place: Path) -> None:
    config, models, rows = parts("rollout.temperature=0", "rollout.max_new_tokens=12")
    found, _ = teacher_texts(config, models, rows, device="cpu")
    teacher = load_model(TEACHER, key="k")
    for row, text in enumerate(texts_of(found)):
        theirs = teacher.generate(
            torch.tensor([rows.prompt(row).tolist()]), attention_mask=torch.ones(1, len(rows.prompt(row))),
            max_new_tokens=12, do_sample=False, eos_token_id=models.tokenizer.eos_token_id,
            pad_token_id=models.tokenizer.pad_token_id,
        )  # fmt: skip
        assert text == theirs[0].tolist()


def test_text_is_written_once_and_another_setting_prompt_or_teacher_has_a_folder_of_its_own(place: Path) -> None:
    words = ("rollout.max_new_tokens=6",)
    random_state = torch.get_rng_state()
    texts, facts = written(*words)
    assert torch.equal(torch.get_rng_state(), random_state)
    again, facts_again = written(*words, "rollout.batch_size=3", "train.lr=1e-3", "loss=rkl")
    assert facts["made_here"] and not facts_again["made_here"]
    assert facts["sha256"] == facts_again["sha256"] == again.fingerprint() and facts["path"] == facts_again["path"]
    twice, facts_twice = written(*words, "rollout.samples=2")
    assert texts_of(twice)[::2] == texts_of(texts) and texts_of(twice)[1::2] != texts_of(texts)
    folders = {Path(facts["path"]), Path(facts_twice["path"])}
    for other in ("rollout.temperature=0.5", "rollout.top_p=0.9", "rollout.max_new_tokens=7", "rollout.seed=11"):
        folders.add(folder(*words, other))
    folders.add(folder(*words, num_rows=7))
    teacher = load_model(TEACHER, key="k")
    torch.nn.init.zeros_(teacher.transformer.ln_f.weight)
    teacher.save_pretrained(place / TEACHER / "teacher")
    folders.add(folder(*words))
    assert len(folders) == 8


def test_tokens_that_the_student_lacks_are_never_drawn(place: Path) -> None:
    """A teacher padded by 8 rows, of which some are nearly always the likeliest, writes what it wrote without them."""
    words = ("rollout.max_new_tokens=6", "rollout.samples=2")
    plain, _ = written(*words)
    teacher = load_model(TEACHER, key="k")
    teacher.resize_token_embeddings(308)
    with torch.no_grad():
        v_4D = torch.randn(4, teacher.config.n_embd)
        teacher.transformer.wte.weight[300:] = 100 * torch.cat([v_4D, -v_4D])
        ids = torch.from_numpy(plain.prompt(0)[None].astype(np.int64))
        assert teacher(input_ids=ids).logits[0, -1].softmax(-1)[300:].sum() > 0.9
    teacher.save_pretrained(place / TEACHER / "teacher")
    padded, facts = written(*words)
    assert facts["made_here"] and texts_of(padded) == texts_of(plain)


def test_a_second_process_waits_for_the_first_and_reads_what_it_wrote(place: Path) -> None:
    config, models, rows = parts("rollout.max_new_tokens=3")
    _, facts = teacher_texts(config, models, rows, device="cpu")
    theirs = Path(facts["path"])
    theirs.rename(place / "aside")
    waits = threading.Event()
    second = TeacherTexts(config, models, rows, say=lambda text: waits.set() if "waiting" in text else None)
    with claim(theirs):
        thread = threading.Thread(target=lambda: second.ensure(device="cpu"))
        thread.start()
        assert waits.wait(20)
        (place / "aside").rename(theirs)
    thread.join(20)
    assert not thread.is_alive() and not second.made
    assert second.open(reader=place / "run")[0].fingerprint() == facts["sha256"]
    assert str(place / "run") in (theirs / "uses.jsonl").read_text()


def test_the_cache_command_writes_the_text_and_the_teachers_states_over_it_and_a_run_reads_both(
    place: Path, run_here: Kdrun, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "data.max_rows=16", "evaluate=false", "rollout=teacher", "rollout.samples=2", "train.max_steps=2"]
    build(words, CONF)
    alone = capfd.readouterr()
    assert [line.split()[0] for line in alone.out.splitlines()] == ["cache", "texts"]
    assert "writes 32 texts, 2 to each of 16 prompts, at most" in alone.err and not Path("outputs/cache").exists()
    build([*words, "teacher=cached"], CONF)
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [(line[0], line[1]) for line in lines[1:]] == [("texts", "32"), ("train", "32"), ("valid", "8")]
    assert lines[1][2] == lines[2][2], "the states are of the texts' tokens"
    run_here("train", *words, "teacher=cached", "loss=rkl", "hydra.run.dir=run")
    record = read_json(Path("run/run.json"))
    assert (record["rollout"]["texts"], record["rollout"]["made_here"]) == (32, False)
    assert record["data"]["sha256"] == record["rollout"]["sha256"]
    assert record["teacher"]["sets"]["train"]["made_here"] is False
    list_caches(Path("outputs/cache"), Path("outputs/rollouts"))
    listed = [line for line in capfd.readouterr().out.splitlines() if "rollouts" in line.split()[0]]
    assert len(listed) == 1 and listed[0].endswith("whole") and " text " in listed[0]


def test_a_server_writes_in_the_teachers_place_and_its_key_is_in_no_file(
    place: Path, run_here: Kdrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(body: Body, _: int) -> Reply:
        return completes(" SIGN", "stop" if body.get("seed", 0) % 2 else "length")

    words = [*SMALL, "data.max_rows=16", "evaluate=false", "train.max_steps=2", "loss=sft", "hydra.run.dir=run"]
    server_words = ["rollout=teacher", "rollout.server_model=org/big", "rollout.key_env=TEXT_KEY"]
    with serving(script) as server:
        words += [*server_words, f"rollout.server={server.base_url}"]
        refused = run_here("train", *words, check=False)
        assert refused.returncode == 2 and "rollout.key_env=TEXT_KEY: this environment" in refused.stderr
        assert not server.bodies and not Path("run").exists()
        monkeypatch.setenv("TEXT_KEY", KEY)
        run_here("train", *words)
        assert len(server.bodies) == 1 + 16
        assert {head["Authorization"] for head in server.headers} == {f"Bearer {KEY}"}
    record = read_json(Path("run/run.json"))["rollout"]
    assert "big-unicode-" in record["path"] and record["texts"] == 16 and 0 < record["finished_share"] < 1
    identity = read_json(Path(record["path"]) / "manifest.json")["identity"]
    assert (identity["server"], identity["server_model"]) == (f"127.0.0.1:{server.server_port}", "org/big")
    files = [path for path in place.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
