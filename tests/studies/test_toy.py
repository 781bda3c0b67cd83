"""The toy study against figures worked out by hand once (shared/studies.md), closed forms and small cases."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import norm

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.errors import UserError
from kdrun.losses.head import head_and_tail_gaps
from kdrun.studies.contenders import contenders
from kdrun.studies.findings import Claim, Findings
from kdrun.studies.toy.claims import judged, ranges, seeking
from kdrun.studies.toy.pace import Fitted, gaps, half_time
from kdrun.studies.toy.pictures import spread_epochs
from kdrun.studies.toy.study import fit_free_logits, study
from kdrun.studies.toy.targets import Split, Target, half_gaussian, splits, two_mode_targets
from kdrun.words import read_flags

SMALL = ["study.losses=[fkl,rkl]", "study.num_starts=2", "study.other_learning_rates=[]"]
SHORT = [*SMALL, "study.modes_epochs=[1]", "study.tail_epochs=[1,5,10,11]", "study.tail_steps=11"]
FKL, RKL = contenders(["fkl", "rkl"])


def settings(*words: str) -> dict:
    cells = compose_cells("study", ["study=toy", *words], read_flags([]), CONF)
    values: dict = cells[0].config.study.model_dump()  # type: ignore[attr-defined]
    return {key: value for key, value in values.items() if key != "name"}


def no_bar(total: int) -> Callable[..., None]:
    return lambda count=1: None


def run(*words: str) -> Findings:
    return study(**settings(*words), begin=no_bar)


def verdicts(findings: Findings) -> dict[str, str]:
    return {claim.key: claim.verdict for claim in findings.claims}


@pytest.fixture(scope="module")
def full() -> Findings:
    """Two starts, FKL and RKL, everything else as it comes."""
    return run(*SMALL)


def tail_errors(findings: Findings, rule: str, mu: float, epoch: int) -> list[float]:
    rows = [row for row in findings.tables["errors"] if (row["rule"], row["mu"], row["epoch"]) == (rule, mu, epoch)]
    assert [row["loss"] for row in rows] == ["FKL", "RKL"]
    return [row["tail_first_start"] for row in rows]


def test_the_far_tail_errors_are_those_of_the_reference(full: Findings) -> None:
    assert tail_errors(full, "class", 47, 5) == pytest.approx([0.164, 0.104], abs=5e-4)


def test_the_tail_errors_by_the_papers_rule_are_those_of_the_reference(full: Findings) -> None:
    found = [error for epoch in (1, 5, 10) for error in tail_errors(full, "paper", 0.5, epoch)]
    assert found == pytest.approx([0.757, 0.819, 0.304, 0.575, 0.127, 0.339], abs=1.5e-3)  # the noise is 1%


def test_the_losses_at_the_end_of_figure_3_are_those_the_notebook_prints(full: Findings) -> None:
    measured = full.claims[0].measured.split("80 classes: ")[1].split()
    assert [float(measured[0]), float(measured[2])] == pytest.approx([1.149e-6, 5.116e-6], rel=2e-3)


@pytest.mark.parametrize(("target", "forward_nats"), [(0, (1.5e-10, 8.1e-9)), (1, (3.5e-5, 1.5e-4))])
def test_both_losses_end_figure_2_as_near_the_teacher_as_the_reference(
    target: int, forward_nats: tuple[float, float]
) -> None:
    case = two_mode_targets(seed=1, num_starts=2)[target]
    second = Target(
        case.name, case.x_label, case.x_V, case.p_V, case.starts_NV[1:]
    )  # the notebook's start for epoch 200
    for contender, expected in zip((FKL, RKL), forward_nats, strict=True):
        q_V = fit_free_logits(second, contender, 0.1, 200)[-1, 0]
        assert float((case.p_V * (case.p_V / q_V).log()).sum()) == pytest.approx(expected, rel=0.03)


def test_the_verdicts_at_the_papers_settings(full: Findings) -> None:
    assert verdicts(full) == {
        "same_end": "holds",
        "mode_seeking": "contradicted",
        "mean_seeking": "contradicted",
        "fkl_head_first": "holds",
        "rkl_tail_first": "holds only when",
        "rkl_far_tail_first": "holds",
        "fkl_own_head_first": "contradicted",
        "rkl_own_tail_first": "holds",
    }
    assert claim(full, "rkl_tail_first").condition == "the split is code 0.999 or paper 0.999"


def claim(findings: Findings, key: str) -> Claim:
    (found,) = (claim for claim in findings.claims if claim.key == key)
    return found


@pytest.mark.parametrize(("mu", "verdict"), [(0.5, "contradicted"), (0.999, "holds")])
def test_whether_rkl_fits_the_tail_first_turns_with_mu(mu: float, verdict: str) -> None:
    found = verdicts(run(*SHORT, f"study.mus=[{mu}]", "study.thresholds=[]"))
    assert found["rkl_tail_first"] == verdict
    assert found["fkl_head_first"] == found["rkl_far_tail_first"] == "holds"
    assert found["same_end"] == "contradicted"  # after 1 and 11 updates nobody has arrived


def test_a_far_tail_that_starts_in_the_head_turns_the_verdict() -> None:
    assert verdicts(run(*SHORT, "study.far_tail_from=9"))["rkl_far_tail_first"] == "contradicted"


def test_other_losses_and_rates_get_rows_and_curves() -> None:
    words = ["study.losses=[rkl,{name: akl, mu: 0.3},fkl,tvd]", "study.other_learning_rates=[0.5]"]
    findings = run(*SHORT, *words)
    labels = ["RKL", "AKL mu=0.3", "FKL", "TVD"]
    assert [row["loss"] for row in findings.tables["convergence"]] == labels * 4
    assert {row["learning_rate"] for row in findings.tables["order"]} == {0.2, 0.5}
    assert {picture.name for picture in findings.pictures} == {"modes", "tail", "errors", "ahead", "own"}
    for picture in findings.pictures[:3]:
        assert {curve.label for curve in picture.panels[0].curves} - {"teacher"} == set(labels)
    for animation in findings.animations:
        assert len(animation.frames) <= 32
    for table in findings.tables.values():
        assert {frozenset(row) for row in table} == {frozenset(table[0])}


def test_the_teachers_are_scipys_gaussians_and_the_starts_torchs_stream() -> None:
    x = torch.arange(0, 100, 2).numpy()
    torch.manual_seed(5)
    for target, (first, second, width) in zip(
        two_mode_targets(seed=5, num_starts=1), ((25, 75, 10), (50, 50, 15), (25, 74, 15)), strict=True
    ):
        density = torch.from_numpy(0.3 * norm(first, width).pdf(x) + 0.5 * norm(second, width).pdf(x))
        assert torch.allclose(target.p_V, density / density.sum(), rtol=1e-12)
        assert torch.equal(target.starts_NV[0], torch.rand(50).double())
    tail = half_gaussian(seed=5, num_starts=3)
    density = torch.from_numpy(norm(0, 16).pdf(torch.arange(80).numpy() * 1.25))
    noise_V = tail.p_V / density
    assert 1 < float(noise_V.max() / noise_V.min()) < 1.01
    torch.manual_seed(5)
    assert torch.equal(tail.starts_NV[0], torch.rand(80).double())
    assert torch.equal(half_gaussian(seed=5, num_starts=1).p_V, tail.p_V)  # whatever the number of starts


def test_adams_first_update_moves_every_logit_by_the_learning_rate() -> None:
    target = half_gaussian(seed=3, num_starts=2)
    q_ENV = fit_free_logits(target, FKL, 0.2, 1)
    gradient_NV = q_ENV[0] - target.p_V  # FKL's
    moved_NV = target.starts_NV - 0.2 * gradient_NV / (gradient_NV.abs() + 1e-8)
    assert torch.allclose(q_ENV[1], moved_NV.softmax(-1), rtol=1e-12)


def test_heads_by_hand() -> None:
    p_V = torch.tensor([0.3, 0.4, 0.1, 0.15, 0.05], dtype=torch.float64)
    found = splits(p_V, mus=(0.5,), thresholds=(0.12, 0.6), far_tail_from=2)
    heads = {cut.label: cut.head_V.tolist() for cut in found}
    assert heads == {
        "code 0.5": [0, 1, 0, 0, 0],
        "paper 0.5": [1, 1, 0, 0, 0],
        "pointwise 0.12": [1, 1, 0, 1, 0],  # by 0.6 the head is empty: left out
        "class 2": [1, 1, 0, 0, 0],
        "likeliest 1": [0, 1, 0, 0, 0],
        "likeliest 2": [1, 1, 0, 0, 0],
        "likeliest 3": [1, 1, 0, 1, 0],
        "likeliest 4": [1, 1, 1, 1, 0],
    }
    assert found[1].mass == pytest.approx(0.7)


def test_gaps_are_those_of_the_loss() -> None:
    target = half_gaussian(seed=2, num_starts=3)
    q_ENV = torch.stack((target.starts_NV, 3 * target.starts_NV)).softmax(-1)
    cuts = splits(target.p_V, mus=(0.3, 0.7), thresholds=(0.01,), far_tail_from=47)[:5]
    head_ENS, tail_ENS = gaps(q_ENV, target.p_V, torch.stack([cut.head_V for cut in cuts]))
    for i, cut in enumerate(cuts):
        p_NV = target.p_V.expand(6, -1).contiguous()
        head_N, tail_N = head_and_tail_gaps(p_NV, q_ENV.reshape(6, -1), mu=cut.mu, head=cut.rule)
        assert torch.allclose(head_ENS[..., i].flatten(), head_N, atol=1e-12)
        assert torch.allclose(tail_ENS[..., i].flatten(), tail_N, atol=1e-12)


def test_half_times_by_hand() -> None:
    #                      falls, at an epoch, never, comes back
    errors_ES = torch.tensor([[8.0, 8, 8, 8], [6, 4, 7, 2], [3, 1, 6, 9], [1, 0, 5, 9]], dtype=torch.float64)
    assert half_time(errors_ES[:, None])[0].tolist() == pytest.approx([1 + 2 / 3, 1, torch.inf, 2 / 3])


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ({"a": 0.9, "b": 1.0}, ("holds", "")),
        ({"a": 0.89, "b": 1.0}, ("holds only when", "the split is b")),
        ({"a": 0.2, "b": 1.0, "c": 1.0}, ("holds only when", "the split is not a")),
        ({"a": 0.1, "b": 0.0, "c": 0.8}, ("contradicted", "")),
        ({"a": 0.1, "b": 0.5, "c": 0.8}, ("doubtful", "")),
    ],
)
def test_a_verdict_comes_from_the_shares_of_the_starts(shares: dict, verdict: tuple[str, str]) -> None:
    assert judged(shares) == verdict


def test_students_that_seek_modes_or_means_are_seen() -> None:
    target = two_mode_targets(seed=1, num_starts=1)[0]
    one_mode_V = target.p_V * (target.x_V > 50)
    between_V = target.p_V + 0.1 * target.near_V["between"]
    students = {"RKL": one_mode_V, "FKL": between_V}
    sought = {label: (q_V / q_V.sum())[None, None] for label, q_V in students.items()}
    assert [claim.verdict for claim in seeking([Fitted(target, 0.1, sought)])] == ["holds", "holds"]
    still = dict.fromkeys(students, target.p_V[None, None])
    assert [claim.verdict for claim in seeking([Fitted(target, 0.1, still)])] == ["contradicted", "contradicted"]


def test_the_mass_near_two_modes_and_between_them_is_all_of_it() -> None:
    target = two_mode_targets(seed=1, num_starts=1)[0]
    assert torch.equal(sum(target.near_V.values()), torch.ones(50))
    assert target.x_V[target.near_V["between"] == 1].tolist() == list(range(38, 63, 2))  # 37.5 to 62.5


def test_epochs_of_frames_begin_one_by_one_and_end_at_the_last() -> None:
    epochs = spread_epochs(300, 44)
    assert epochs[:23] == list(range(23))
    assert epochs[-1] == 300
    assert len(epochs) <= 44
    assert spread_epochs(5, 44) == [0, 1, 2, 3, 4, 5]


def test_ranges_in_words() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1 to 3, 7, 9 to 10"
    assert Split("paper", 0.5, torch.ones(2), 1.0).label == "paper 0.5"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("study.losses=[fkl,akl]", "must hold rkl"),
        ("study.tail_steps=100", "must be at least 300"),
        ("study.modes_epochs=[200,1]", "must grow"),
        ("study.far_tail_from=80", "79"),
        ("study.mus=[1.5]", "1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        settings(word)
    assert "\n" not in str(refused.value)
    assert word.split("=", maxsplit=1)[0] in str(refused.value)
