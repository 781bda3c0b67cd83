"""Bad input, the cheap part: some cases of each table of tests/torture/malformed, and what counts as bad in data.

The whole of it, with both fuzzers: python -m tests.torture inputs.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Kdrun
from tests.torture.fuzz import fuzzed_lines, fuzzed_words, read, shown
from tests.torture.malformed.case import listing
from tests.torture.malformed.lines import GOOD, row
from tests.torture.malformed.models import MODELS, TRY
from tests.torture.malformed.tables import NEED_A_RUN, TABLES

# Those of models that hold for a teacher of one layer, as the workspace's is.
OF_MODELS = ("an empty config.json", "config.json with n_embd=-1", "config.json with vocab_size=301", "no weights",
             "half the weights", "a header of 2^63 bytes", "no table of tokens", "half a tokenizer",
             "more tokens than rows of the model", "rows longer than the model's positions")  # fmt: skip
SAMPLE = {
    f"{table}: {case.name}": case for table, step in (("words", 25), ("lines", 9)) for case in TABLES[table][::step]
}
SAMPLE |= {f"models: {case.name}": case for case in MODELS if case.name in OF_MODELS}


@pytest.fixture
def place(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace, which a case may spoil."""
    shutil.copytree(workspace, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_malformed_case_is_refused_in_one_line_and_nothing_is_written(
    run_here: Kdrun, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = SAMPLE[name]
    if not name.startswith(NEED_A_RUN):
        Path("empty").mkdir()
        monkeypatch.chdir("empty")
    case.arrange(Path.cwd())
    before = listing(place)
    if case.words[0] in ("train", "evaluate", "sweep", "judge"):
        done = run_here(*case.words, check=False)
        code, err = done.returncode, done.stderr
    else:
        code, err = typed(case.words)
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith("kdrun: "), err
    assert all(part in err for part in case.expected), err
    assert listing(place) == before


def typed(words: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and standard error of a command that is not Hydra's."""
    import contextlib
    import io

    from kdrun.cli import app

    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        app(list(words), prog_name="kdrun")
    return int(ended.value.code or 0), err.getvalue()


def test_there_are_more_than_300_cases_and_each_has_a_name_of_its_own() -> None:
    names = [(table, case.name) for table, cases in TABLES.items() for case in cases]
    assert len(names) > 300
    assert len(set(names)) == len(names)


def test_mutated_words_are_taken_or_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(8):
        code, err = shown(fuzzed_words(seed))
        assert code == 0 or (code == 2 and len(err.splitlines()) == 1), (fuzzed_words(seed), err)


def test_mutated_data_files_are_read_or_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for seed in range(500):
        said = read(path, fuzzed_lines(seed))
        assert not said or said.startswith((f"{path}:", "data.path=")), said


def test_the_checks_before_a_run_import_no_torch(place: Path) -> None:
    """Under two seconds is not for a process that imports it."""
    import subprocess
    import sys

    program = (
        "import sys; from kdrun.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    next(case for case in MODELS if case.name == "half the weights").arrange(place)
    done = subprocess.run(
        [sys.executable, "-c", program, *TRY.split()], capture_output=True, text=True, check=True, cwd=place
    )
    assert done.stdout.strip() == "2 []", done.stderr


def test_true_is_no_number_and_seeds_have_64_bits(run_here: Kdrun) -> None:
    assert "train.lr=true: must be a number above 0" in run_here("train", "train.lr=true", check=False).stderr
    assert f"seed={2**63}: must be below 2^63" in run_here("train", f"seed={2**63}", check=False).stderr


def test_the_typed_key_is_named_and_not_one_that_follows_from_it(run_here: Kdrun) -> None:
    """pair.context is data.max_tokens, and stands before it in the schema."""
    assert run_here("train", "data.max_tokens=1.5", check=False).stderr.startswith("kdrun: data.max_tokens=1.5: must")


def test_prompts_that_are_all_too_long_are_refused_before_the_run_begins(run_here: Kdrun, place: Path) -> None:
    Path("my.jsonl").write_bytes(b"".join(row(instruction=f"Say {n}. " + "word " * 300) for n in range(100)))
    made = place / "outputs/teachers/tiny-unicode"
    words = ["data=jsonl", "data.path=my.jsonl", "pair=gpt2", f"pair.student={made}", f"pair.teacher={made}",
             "data.max_prompt_tokens=64", "data.max_tokens=96"]  # fmt: skip
    before = listing(place)
    said = run_here("train", *words, check=False).stderr
    assert "data.max_prompt_tokens=64: every prompt of 100 examples is longer" in said
    assert listing(place) == before


def test_repeated_rows_are_counted_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from kdrun.data.sources import load_splits

    rows = [row(instruction=f"Say {n}.") for n in range(200)]
    (tmp_path / "a.jsonl").write_bytes(b"".join([*rows, rows[0], rows[1], rows[0]]))
    splits = load_splits("jsonl", path=str(tmp_path / "a.jsonl"))
    assert "3 of 203 rows repeat an earlier one" in caplog.text
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 203


def test_empty_responses_still_score_the_end_of_text(place: Path) -> None:
    """No row is all masked: the end-of-text token is scored after every prompt that is kept."""
    from kdrun.data.encoding import encode
    from kdrun.data.jsonl import read_jsonl
    from kdrun.models.loading import load_tokenizer

    Path("a.jsonl").write_bytes(row(output="") + row(output=[""]) + GOOD)
    tokenizer = load_tokenizer("outputs/teachers/tiny-unicode", key="pair.teacher")
    rows = encode(read_jsonl("a.jsonl"), tokenizer, template="plain", max_prompt_tokens=48, max_tokens=96)
    assert rows.scored_lengths[:2].tolist() == [1, 1]


def test_a_line_of_3_gib_is_refused_without_a_gib_of_memory(tmp_path: Path) -> None:
    import resource

    from kdrun.data.jsonl import check_jsonl
    from kdrun.errors import UserError
    from tests.torture.malformed.lines import sparse

    sparse(tmp_path / "a.jsonl")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="longer than 16777216 bytes"):
        check_jsonl(tmp_path / "a.jsonl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 2**10  # KiB
    os.truncate(tmp_path / "a.jsonl", 0)
