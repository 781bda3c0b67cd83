"""kdrun judge: the whole command on made-up evaluations and a judge on 127.0.0.1."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import read_json, read_lines, run_kdrun
from tests.evaluation.judge.loopback import Body, Loopback, Reply, prompt_of, says, serving

KEY = "sk-never-to-be-seen-0123456789"
WITH_KEY = {"JUDGE_KEY": KEY}
NUM = 6


def make_evaluation(folder: Path, name: str, seeds: tuple[int, ...] = ()) -> Path:
    """NUM examples whose texts are `NAME says I` and `NAME sample SEED of I`."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(NUM):
        row = {"instruction": f"Say {i}.", "input": "", "references": [f"human says {i}"], "nll": 1.0}
        row["greedy"] = {"text": f"{name} says {i}", "finished": True, "rouge_l": 50.0}
        row |= {f"seed{seed}": {"text": f"{name} sample {seed} of {i}", "finished": True} for seed in seeds}
        lines.append(json.dumps(row) + "\n")
    (folder / "examples.jsonl").write_text("".join(lines))
    (folder / "protocol.json").write_text(json.dumps({"fingerprint": "f00d"}))
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for run in ("one", "two"):
        make_evaluation(tmp_path / run / "eval" / "quick", run, seeds=(1, 2))
    make_evaluation(tmp_path / "flat", "flat")
    return tmp_path


def judge(server: Loopback, here: Path, *words: str, check: bool = True, env: dict | None = None):
    endpoint = [f"judge.base_url={server.base_url}", "judge.model=tiny-judge", "judge.retries=0"]
    return run_kdrun("judge", *endpoint, *words, cwd=here, check=check, env=env)


def by_length(body: Body, attempt: int) -> Reply:
    """Prefers one's texts to two's; scores 7 for the even examples and 4 for the odd."""
    prompt = prompt_of(body)
    if "response_B" in prompt:
        return says("[[A]]" if prompt.index("one says") < prompt.index("two says") else "[[B]]")
    return says("Fine. [[7]]" if int(re.search(r"Say (\d)", prompt)[1]) % 2 == 0 else "Weak. [[4]]")


def test_without_yes_nothing_is_sent_or_written_and_the_line_to_type_is_printed(here: Path) -> None:
    before = sorted(here.rglob("*"))
    with serving(by_length) as server:
        done = judge(server, here, "runs=[one,two]", "judge.input_price=1000", "judge.output_price=0")
    assert server.bodies == [] and sorted(here.rglob("*")) == before
    assert f"{2 * NUM} requests to send (0 more" in done.stdout and "cost at most" in done.stdout
    assert re.search(r"Nothing was sent.*kdrun judge .*'runs=\[one,two\]'.* yes=true$", done.stdout, re.MULTILINE)


def test_scores_are_written_beside_each_evaluation_and_a_rerun_asks_nothing(here: Path) -> None:
    with serving(by_length) as server:
        first = judge(server, here, "runs=[one,two/eval/quick]", "yes=true")
        assert len(server.bodies) == 2 * NUM
        again = judge(server, here, "runs=[one,two]")  # nothing to send needs no yes=true
        assert len(server.bodies) == 2 * NUM
        judge(server, here, "runs=one", "eval=quick", "judge.num_examples=2", "seed=3", "yes=true")
        assert len(server.bodies) == 2 * NUM
    assert "quality 5.500: 6 of 6 judged, 0 unreadable, 0 failed" in first.stdout
    assert f"{2 * NUM} requests sent, 0 from the cache" in first.stdout
    assert f"0 requests sent, {2 * NUM} from the cache" in again.stdout
    folder = here / "one" / "eval" / "quick" / "judge"
    assert sorted(path.name for path in folder.iterdir()) == ["tiny-judge", "tiny-judge-2", "tiny-judge-3"]
    assert sorted(path.name for path in (folder / "tiny-judge").iterdir()) == [
        "examples.jsonl", "protocol.json", "summary.json",
    ]  # fmt: skip
    assert read_json(folder / "tiny-judge" / "summary.json")["quality"] == 5.5
    assert read_lines(folder / "tiny-judge" / "examples.jsonl") == [
        {"index": i, "quality": 4 if i % 2 else 7} for i in range(NUM)
    ]
    protocol = read_json(folder / "tiny-judge" / "protocol.json")
    assert (protocol["model"], protocol["answered_as"], protocol["temperature"]) == ("tiny-judge", ["judge-2026"], 0)
    assert protocol["fingerprint"] == "f00d" and list(protocol["prompts"]) == ["quality"]
    assert read_json(folder / "tiny-judge-3" / "summary.json")["num_examples"] == 2
    runs = sorted((here / "outputs" / "judge").iterdir())
    assert [read_json(run / "run.json")["status"] for run in runs] == ["done"] * 3
    lines = read_lines(runs[0] / "judgements.jsonl")
    assert len(lines) == 2 * NUM and lines[0]["answer"] == "Fine. [[7]]" and lines[0]["verdict"] == 7
    cache = here / "outputs" / "judge-cache"
    assert {path.stem for path in cache.glob("*/*.json")} == {line["request"] for line in lines}


def test_pairs_are_judged_in_both_orders(here: Path) -> None:
    with serving(by_length) as server:
        out = judge(server, here, "runs=one", "against=two", "yes=true").stdout
    assert len(server.bodies) == 2 * NUM
    assert "win_rate 1.000: 6 of 6 judged (6 won, 0 lost, 0 tied, 0 inconsistent)" in out
    assert "words 3.0, against 3.0" in out
    assert read_json(here / "one/eval/quick/judge/tiny-judge/protocol.json")["against"] == "two/eval/quick"
    with serving(lambda *_: says("[[A]]")) as server:  # the first place always wins
        out = judge(server, here, "runs=one", "against=references", "decoding=seed2", "yes=true", "name=human").stdout
    assert "win_rate 0.500: 6 of 6 judged (0 won, 0 lost, 0 tied, 6 inconsistent)" in out
    assert all("one sample 2 of" in prompt_of(body) and "human says" in prompt_of(body) for body in server.bodies)


def test_diversity_is_of_the_samples(here: Path) -> None:
    with serving(by_length) as server:
        out = judge(server, here, "runs=one", "scores=[quality,diversity]", "judge.num_examples=4", "yes=true").stdout
        refused = judge(server, here, "runs=flat", "scores=diversity", "yes=true", check=False)
    assert "diversity" in out and len(server.bodies) == 8
    assert refused.returncode == 2 and "needs at least two samples" in refused.stderr


def leaky(body: Body, attempt: int) -> Reply:
    """Each example another fault, the key in each."""
    return {
        0: says(f"{KEY} [[7]]"),
        1: Reply(f"bad key {KEY}", 500, {"X-Key": KEY}),
        2: Reply(f"<html>{KEY}</html>"),
        3: says(f"I like both, {KEY}"),
        4: Reply(json.dumps({"error": {"message": f"Bearer {KEY}"}}), 400),
        5: says(None),
    }[int(re.search(r"Say (\d)", prompt_of(body))[1])]


def test_the_key_is_sent_and_never_written_or_printed_and_no_failure_is_dropped(here: Path) -> None:
    words = ["runs=one", "judge.key_env=JUDGE_KEY", "yes=true"]
    with serving(leaky) as server:
        done = judge(server, here, *words, env=WITH_KEY)
        again = judge(server, here, *words, env=WITH_KEY)
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    assert "quality 7.000: 1 of 6 judged, 2 unreadable, 3 failed" in done.stdout
    assert "6 requests sent, 0 from the cache, 3 failed" in done.stdout
    assert "3 failed requests" in done.stderr
    assert len(server.bodies) == 6 + 3  # what failed is asked again; what was unreadable is not
    assert "3 requests sent, 3 from the cache, 3 failed" in again.stdout
    for text in (done.stdout, done.stderr, again.stdout, again.stderr):
        assert KEY not in text
    files = [path for path in here.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]
    lines = read_lines(next((here / "outputs" / "judge").iterdir()) / "judgements.jsonl")
    assert [bool(line["error"]) for line in lines] == [False, True, True, False, True, False]


def test_a_sweep_is_refused_since_one_judge_takes_all_runs(here: Path) -> None:
    with serving(by_length) as server:
        done = judge(server, here, "--multirun", "runs=one", "seed=1,2", "yes=true", check=False)
    assert done.returncode == 2 and "--multirun" in done.stderr and server.bodies == []


def test_a_refused_key_ends_in_one_line_and_says_so_in_the_run(here: Path) -> None:
    with serving(lambda *_: Reply(f"wrong: {KEY}", 401)) as server:
        done = judge(server, here, "runs=one", "judge.key_env=JUDGE_KEY", "yes=true", check=False, env=WITH_KEY)
    assert done.returncode == 2 and KEY not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("kdrun: judge.key_env: http://127.0.0.1")
    assert "Traceback" not in done.stderr
    run = next((here / "outputs" / "judge").iterdir())
    assert read_json(run / "run.json")["status"] == "failed"
    assert not (here / "one/eval/quick/judge").exists()
    assert not [path for path in here.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_sweep_directory_means_its_cells_and_suites_are_compared_suite_by_suite(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdrun.cli import CONF
    from kdrun.commands.judge import make_plan
    from kdrun.compose import compose_cells
    from kdrun.words import read_flags

    for cell in ("sweep/2", "sweep/10", "other"):
        for suite in ("dolly", "vicuna"):
            make_evaluation(here / cell / "eval" / "paper" / suite, f"{cell} {suite}")
        (here / cell / "run.json").write_text("{}")
    monkeypatch.chdir(here)
    words = ["runs=sweep", "against=other", "judge.model=m", "judge.base_url=http://127.0.0.1:9/v1"]
    sets = make_plan(compose_cells("judge", words, read_flags([]), CONF)[0].config).sets
    folders = [f"sweep/{cell}/eval/paper/{suite}" for suite in ("dolly", "vicuna") for cell in (2, 10)]
    assert [str(judged.folder) for judged in sets] == folders
    assert [judged.others[0] for judged in sets] == ["other dolly says 0"] * 2 + ["other vicuna says 0"] * 2


@pytest.mark.parametrize(
    ("word", "said", "hidden"),
    [
        ("judge.key_env=sk-abcdefgh12345678", "judge.key_env: must be the name", "abcdefgh"),
        ("judge.key_env=gskabcdefgh12345678", "judge.key_env: must be the name", "abcdefgh"),
        ("judge.key_env=NOT_THERE", "judge.key_env=NOT_THERE: this environment variable is not set", KEY),
        ("judge.base_url=http://me:secretword@127.0.0.1:9/v1", "judge.base_url: must hold no user name", "secretword"),
        ("judge.base_url=127.0.0.1:9", "judge.base_url=127.0.0.1:9: must be an address", KEY),
        ("evaluation=gone", "eval=gone: one has no such evaluation (there are quick)", KEY),
        ("against=one", "is judged already", KEY),
        ("judge.modle=x", "did you mean 'judge.model'?", KEY),
    ],
)
def test_mistakes_are_one_line_before_anything(
    word: str, said: str, hidden: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: eight starts of Python would cost more than they show."""
    from kdrun.cli import CONF
    from kdrun.commands.judge import check_judge
    from kdrun.compose import compose_cells
    from kdrun.errors import UserError
    from kdrun.words import read_flags

    words = ["runs=one", "judge.model=m", "judge.base_url=http://127.0.0.1:9/v1", word]
    monkeypatch.chdir(here)
    with pytest.raises(UserError) as caught:
        check_judge(compose_cells("judge", words, read_flags([]), CONF)[0].config)
    assert said in str(caught.value) and hidden not in str(caught.value) and "\n" not in str(caught.value)
