"""kdrun bench through the real command, at sizes where nothing is worth measuring. No timed assertion."""

import json
from pathlib import Path

import pytest

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.explain import group_options
from kdrun.native.products import onednn_is_better
from kdrun.words import read_flags
from tests.conftest import read_json, run_kdrun

FILES = {"bench.json", "config.yaml", "log.txt", "picture.png", "run.json", "table.md"}
PAIR = [
    "bench.vocabulary=400", "bench.student_layers=1", "bench.student_width=16", "bench.student_heads=2",
    "bench.teacher_layers=1", "bench.teacher_width=32", "bench.teacher_heads=2", "bench.max_prompt_tokens=120",
    "bench.max_tokens=160", "bench.batch_size=4", "bench.data=rows.jsonl",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a file of rows, and a place that hides the peers."""
    folder = tmp_path_factory.mktemp("bench")
    rows = [{"instruction": f"Say {i}", "input": "", "output": "word " * (3 + i % 7)} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "hidden").mkdir()
    hide = "import sys\nsys.modules['trl'] = sys.modules['liger_kernel'] = None\n"
    (folder / "hidden" / "sitecustomize.py").write_text(hide)
    return folder


def bench(folder: Path, which: str, *words: str) -> tuple[dict, Path, str]:
    """(bench.json, run directory, what was printed) without peers, each benchmark in two rounds."""
    run = folder / "outputs" / which
    words = (which, "bench.repetitions=2", "bench.threads=1", *words, f"hydra.run.dir={run}")
    done = run_kdrun("bench", *words, cwd=folder, env={"PYTHONPATH": str(folder / "hidden")})
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == FILES
    assert read_json(run / "run.json")["status"] == "done"
    assert (run / "picture.png").read_bytes().startswith(b"\x89PNG")
    table = (run / "table.md").read_text()
    assert table in done.stdout
    found = read_json(run / "bench.json")
    assert found["bench"] == which
    assert found["threads"] == 1
    for case in found["cases"]:
        for entry in (entry for entry in case["entries"] if not entry["note"]):
            assert len(entry["seconds"]) in (2, 1)
            assert entry["quartiles_s"][0] <= entry["median_s"] <= entry["quartiles_s"][1]
            assert entry["ratio"]["median"] > 0
            assert entry["name"] in table
    for target in found["targets"]:
        within = target["ratio"] >= target["limit"] if target["at_least"] else target["ratio"] <= target["limit"]
        assert target["met"] is within
    return found, run, table


def names(case: dict) -> list[str]:
    return [entry["name"] for entry in case["entries"]]


def test_loss(folder: Path) -> None:
    words = ["bench.rows=4", "bench.vocabulary=300", "bench.curve=[64,128]", "bench.curve_rows=2"]
    found, _, table = bench(folder, "loss", *words, "bench.curve_repetitions=1", "bench.memory=false")
    assert [case["curve_only"] for case in found["cases"]] == [False, False, True, True]
    assert {"copy", "ours akl", "ours gap", "textbook akl"} < set(names(found["cases"][0]))
    assert "- TRL fkl: trl is not installed" in table
    assert "TRL jsd: trl is not installed" in found["missing"]
    assert {(t["contestant"], t["against"]) for t in found["targets"]} == {
        ("ours akl", "ours fkl"), ("textbook akl", "ours akl"),
    }  # fmt: skip
    assert "at most 1.5: " in table


def test_objective_with_memory_in_a_process_of_its_own(folder: Path) -> None:
    words = ["bench.tokens=8", "bench.vocabulary=99", "bench.student_width=8", "bench.teacher_width=16"]
    found, _, table = bench(
        folder, "objective", *words, "bench.losses=[fkl]", "bench.peer_losses=[fkl]",
        "bench.only=[floor,ours,Liger,TRL]", "bench.curve=[]",
    )  # fmt: skip
    (case,) = found["cases"]
    floors = ["floor: four products", *(["floor, by oneDNN"] if onednn_is_better() else [])]
    peers = ["Liger fkl, compiled", "Liger fkl", "TRL fkl"]
    assert names(case) == [*floors, "ours fkl", "ours fkl, compiled", *peers]
    weighed = {entry["name"]: entry["peak_bytes"] for entry in case["entries"] if not entry["note"]}
    assert weighed["floor: four products"] is None
    assert weighed["ours fkl"] >= 0
    assert "- Liger fkl: liger_kernel is not installed" in table
    assert [(t["contestant"], t["against"], t["limit"]) for t in found["targets"]] == [
        ("ours fkl", floor, 1.25) for floor in floors
    ]


def test_step_counts_tokens_and_the_whole_process(folder: Path) -> None:
    found, _, table = bench(folder, "step", *PAIR)
    ours = found["cases"][0]["entries"][0]
    assert ours["name"] == "kdrun"
    assert ours["tokens_per_s"] > ours["scored_tokens_per_s"] > 0
    assert ours["peak_bytes"] > 100 * 2**20  # torch alone
    assert "TRL GKDTrainer: trl is not installed" in table


def test_cache_compares_epochs_and_sweeps(folder: Path) -> None:
    found, _, _ = bench(folder, "cache", *PAIR, "bench.mus=[0.3,0.5]")
    assert [(t["contestant"], t["limit"]) for t in found["targets"]] == [
        ("an epoch, warm cache", 0.5), ("2 values of mu, one cache made and read", 0.5),
    ]  # fmt: skip


def test_generate_counts_tokens(folder: Path) -> None:
    sizes = ["bench.vocabulary=300", "bench.layers=1", "bench.width=16", "bench.heads=2", "bench.max_new_tokens=6"]
    found, _, table = bench(
        folder, "generate", *sizes, "bench.data=rows.jsonl", "bench.max_rows=6", "bench.batch_sizes=[4]",
        "bench.usual_batch_size=2", "bench.memory=false",
    )  # fmt: skip
    (case,) = found["cases"]
    assert names(case) == ["kdrun, batch 4", "generate, batch 2", "generate, sorted, batch 4"]
    assert all(entry["tokens_per_s"] > 0 for entry in case["entries"])
    assert "tokens/s" in table
    assert [(t["contestant"], t["limit"], t["at_least"]) for t in found["targets"]] == [
        ("generate, batch 2", 4, True), ("generate, sorted, batch 4", 3, True),
    ]  # fmt: skip


def test_startup_runs_commands_in_fresh_processes(folder: Path) -> None:
    found, _, _ = bench(folder, "startup", "bench.only=[pass,help,refused]")
    assert names(found["cases"][0]) == [
        "python -c pass", "kdrun --help", "kdrun train mu=2 (refused)", "trl --help",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["speed"],
            "no bench=speed (there are cache, generate, loss, objective, rollout, startup, step",
        ),
        (
            [],
            "bench: say which first, one of cache, generate, loss, objective, rollout, startup, step, step_gpt2_xl;",
        ),
        (["bench.rows=4"], "bench: say which first"),
        (["loss", "bench.rows=0"], "bench.rows=0: must be a whole number at least 1"),
        (["loss", "bench.row=4"], "unknown key 'bench.row'; did you mean 'bench.rows'?"),
        (["objective", "bench.losses=[akl]"], "jsd must be among bench.losses"),
        (["generate", "bench.heads=3"], "bench.heads=3: must divide bench.width=256"),
        (["generate", "bench.data=nothing.jsonl"], "bench.data=nothing.jsonl: no such file"),
        (["step", "bench.data=nothing.jsonl"], "bench.data=nothing.jsonl: no such file"),
        (["step", "bench.tokenizer=nowhere"], "bench.tokenizer=nowhere: no tokenizer.json there"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, words: list[str], message: str) -> None:
    done = run_kdrun("bench", *words, cwd=folder, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("kdrun: ")
    assert message in done.stderr


@pytest.mark.parametrize("which", group_options(CONF, "bench"))
def test_every_benchmark_composes(which: str) -> None:
    (cell,) = compose_cells("bench", [f"bench={which}"], read_flags([]), CONF)
    assert cell.config.bench.repetitions >= 3
