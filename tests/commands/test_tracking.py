"""What a sweep and a report leave in W&B's offline files: the curves, summary and tables of the run directories."""

import json
from pathlib import Path

import pytest

from tests.conftest import SMALL, read_json, read_lines, run_kdrun
from tests.runs.test_tracker import history, records, summary, table_files

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
WORDS = [word for word in SMALL if not word.startswith("track.")] + ["train.max_steps=3", "track.mode=offline"]


@pytest.fixture(scope="module")
def sweep(workspace: Path) -> Path:
    run_kdrun("sweep", "loss=akl", "mu=0.3,0.5", *WORDS, "hydra.sweep.dir=outputs/sweep/tracked", cwd=workspace)
    return workspace / "outputs" / "sweep" / "tracked"


def test_every_cell_shows_its_curves_summary_and_generations_under_the_sweeps_group(sweep: Path) -> None:
    for cell in ("0", "1"):
        lines = records(sweep / cell)
        run = next(line["run"] for line in lines if line["type"] == "run")
        assert (run["run_group"], run["job_type"]) == ("tracked", "train")
        curve = {line["step"]: line for line in read_lines(sweep / cell / "metrics.jsonl") if "train/loss" in line}
        shown = history(lines)
        assert [shown[step]["train/loss"] for step in curve] == pytest.approx([curve[s]["train/loss"] for s in curve])
        values, ours = summary(lines), read_json(sweep / cell / "summary.json")
        assert values["eval/greedy/rouge_l"] == pytest.approx(ours["eval/greedy/rouge_l"])
        table = table_files(sweep / cell)["eval/quick"]
        examples = read_lines(sweep / cell / "eval" / "quick" / "examples.jsonl")
        assert [row[table["columns"].index("greedy")] for row in table["data"]] == [
            e["greedy"]["text"] for e in examples
        ]


def test_a_report_shows_its_tables_and_figures(sweep: Path, workspace: Path) -> None:
    for path in sweep.glob("*/metrics.jsonl"):  # a few of forty figures are enough
        few = [
            {key: line[key] for key in ("step", "train/loss", "valid/fkl") if key in line} for line in read_lines(path)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in few))
    run_kdrun("report", str(sweep), "-o", "tracked.html", "--wandb", "kdrun", cwd=workspace, env=OFFLINE)
    folder = workspace / "tracked_files"
    lines = records(folder)
    assert next(line["run"] for line in lines if line["type"] == "run")["job_type"] == "report"
    main = table_files(folder)["report/main"]
    assert {"0.300", "0.500"} <= {cell for row in main["data"] for cell in row}
    pictures = list((folder / "wandb").glob("offline-run-*/files/media/images/report/*.png"))
    assert len(pictures) == len(list(folder.glob("*.png"))) >= 2
