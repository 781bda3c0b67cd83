"""Which gap closes first: verdicts on runs whose curves are made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdrun.errors import UserError
from kdrun.studies.headtail import order_claims, over, pace_claims, read_runs, study

STEPS = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


def gap(start: float, rate: float) -> list[float]:
    """A gap that falls by `rate` of its start over the whole run, evenly."""
    return [start * (1 - rate * step / 100) for step in STEPS]


def write_run(folder: Path, loss: dict, seed: int, *, head: list[float], tail: list[float], **more: str) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": "train", "status": "done", **more}))
    loss = {"kd_ratio": 1.0, "temperature": 1.0, **loss}
    (folder / "config.yaml").write_text(yaml.safe_dump({"role": "student", "seed": seed, "loss": loss}))
    lines = [
        {"step": step, "time_s": step / 10, "valid/head_gap": h, "valid/tail_gap": t, "valid/akl_weight": h / (h + t)}
        for step, h, t in zip(STEPS, head, tail, strict=True)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_sweep(folder: Path, *, fkl: tuple[float, float], rkl: tuple[float, float], noise: float = 0.001) -> Path:
    """Three seeds of both losses; (share of the head's gap closed, share of the tail's)."""
    for seed in range(3):
        for loss, (head, tail) in (("fkl", fkl), ("rkl", rkl)):
            extra = noise * seed
            write_run(folder / f"{loss}-{seed}", {"name": loss}, seed, head=gap(0.6, head + extra), tail=gap(1.2, tail))
    return folder


def judged(folder: Path, windows: tuple[float, ...] = (0.5, 1.0)) -> dict[str, str]:
    findings = study(runs=str(folder), part="valid", windows=windows, begin=lambda total: lambda *_: None)
    return {claim.key: claim.verdict for claim in findings.claims}


def test_the_paper_is_right_where_fkl_closes_the_head_and_rkl_the_tail_first(tmp_path: Path) -> None:
    assert judged(make_sweep(tmp_path, fkl=(0.8, 0.4), rkl=(0.4, 0.8))) == {
        "fkl_head_first": "holds", "rkl_tail_first": "holds",
        "fkl_faster_on_head": "holds", "rkl_faster_on_tail": "holds",
    }  # fmt: skip


def test_the_verdicts_turn_with_the_runs(tmp_path: Path) -> None:
    assert judged(make_sweep(tmp_path, fkl=(0.4, 0.8), rkl=(0.8, 0.4))) == dict.fromkeys(
        ("fkl_head_first", "rkl_tail_first", "fkl_faster_on_head", "rkl_faster_on_tail"), "contradicted"
    )


def test_runs_that_differ_by_less_than_their_seeds_show_nothing(tmp_path: Path) -> None:
    verdicts = judged(make_sweep(tmp_path, fkl=(0.5, 0.5), rkl=(0.5, 0.5), noise=-0.1))
    assert verdicts["fkl_head_first"] == "doubtful"
    assert verdicts["fkl_faster_on_head"] == "doubtful"


def test_a_lead_that_turns_holds_only_for_the_first_steps(tmp_path: Path) -> None:
    """FKL's head is ahead until step 20 and behind afterwards."""
    for seed in range(3):
        head = [0.6 * value for value in (1, 0.7, 0.6, *[0.6] * 8)]
        tail = [1.2 * value for value in (1, 0.95 + seed / 1000, 0.9, 0.5, *[0.1] * 7)]
        write_run(tmp_path / f"f{seed}", {"name": "fkl"}, seed, head=head, tail=tail)
        write_run(tmp_path / f"r{seed}", {"name": "rkl"}, seed, head=tail, tail=head)
    (claim, _) = order_claims(read_runs(tmp_path, part="valid"), [0.2, 1.0])
    assert claim.judgement == "holds only when the first 20% of the steps are meant"


def test_lead_and_mean_by_hand(tmp_path: Path) -> None:
    make_sweep(tmp_path, fkl=(0.8, 0.4), rkl=(0.4, 0.8), noise=0)
    run = read_runs(tmp_path, part="valid")[0]
    # at step 50: head 0.6 -> 0.36 (60 % left), tail 1.2 -> 0.96 (80 % left)
    assert run.lead[5] == pytest.approx(0.2)
    assert run.total[5] == pytest.approx(1.32)
    assert over(run, np.array(STEPS, dtype=float), 0.25) == 15  # steps 10 and 20; the start is no result
    assert over(run, np.array(STEPS, dtype=float), 0.01) == 10  # never fewer than the first look


def test_akl_is_compared_where_it_was_run_and_labels_name_what_differs(tmp_path: Path) -> None:
    make_sweep(tmp_path, fkl=(0.4, 0.4), rkl=(0.4, 0.4))
    for seed in range(3):
        for mu in (0.5, 0.7):
            closed = 0.8 + seed / 100
            write_run(
                tmp_path / f"akl-{mu}-{seed}", {"name": "akl", "mu": mu}, seed,
                head=gap(0.6, closed), tail=gap(1.2, closed),
            )  # fmt: skip
    verdicts = judged(tmp_path)
    assert verdicts["akl_faster_than_fkl"] == verdicts["akl_faster_than_rkl"] == "holds"
    assert "akl_faster_than_fkl_rkl" not in verdicts
    assert {run.label for run in read_runs(tmp_path, part="valid")} == {"FKL", "RKL", "AKL", "AKL mu=0.7"}
    assert len(pace_claims(read_runs(tmp_path, part="valid"), [1.0])) == 2


def test_tables_and_pictures_hold_every_run(tmp_path: Path) -> None:
    make_sweep(tmp_path, fkl=(0.8, 0.4), rkl=(0.4, 0.8))
    findings = study(runs=str(tmp_path), part="valid", windows=[1.0], begin=lambda total: lambda *_: None)
    assert len(findings.tables["curves"]) == 6 * len(STEPS)
    assert {row["run"] for row in findings.tables["leads"]} == {"FKL", "RKL"}
    assert [picture.name for picture in findings.pictures] == ["gaps", "paths"]  # no divergence was measured


def test_runs_that_cannot_be_compared_are_refused_in_words(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"name": "fkl"}, 0, head=gap(0.6, 0.5), tail=gap(1.2, 0.5))
    with pytest.raises(UserError, match=r"there is no rkl \(fkl\); kdrun sweep experiment=headtail"):
        read_runs(tmp_path, part="valid")
    write_run(tmp_path / "1", {"name": "rkl"}, 0, head=gap(0.6, 0.5), tail=gap(1.2, 0.5), status="failed")
    with pytest.raises(UserError, match=r"there is no rkl"):
        read_runs(tmp_path, part="valid")
    with pytest.raises(UserError, match="with train/head_gap there is no fkl and no rkl"):
        read_runs(tmp_path, part="train")


def test_too_few_points_are_refused(tmp_path: Path) -> None:
    make_sweep(tmp_path, fkl=(0.8, 0.4), rkl=(0.4, 0.8))
    metrics = tmp_path / "rkl-0" / "metrics.jsonl"
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(UserError, match="3 points of valid/head_gap are too few"):
        read_runs(tmp_path, part="valid")
