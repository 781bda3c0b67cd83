"""The study `losses` as a whole, small, and its settings."""

import pytest

from kdrun.cli import CONF
from kdrun.compose import compose_cells
from kdrun.errors import UserError
from kdrun.studies.losses.study import study
from kdrun.words import read_flags

SMALL = ["study.vocabulary=40", "study.num_pairs=4", "study.sweep=[0.1,0.5,0.9]", "study.losses=[fkl,tvd,akl,jsd,taid]"]


def settings(*words: str) -> dict:
    (cell, *_) = compose_cells("study", ["study=losses", *words], read_flags([]), CONF)
    values = cell.config.study.model_dump()
    assert values.pop("name") == "losses"
    return values


def test_the_study_gives_claims_tables_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdrun.studies.losses.disguise.NUM_STEPS", 5)
    planned: list[int] = []
    done: list[int] = []

    def begin(total: int):
        planned.append(total)
        return lambda n=1: done.append(n)

    findings = study(**settings(*SMALL), begin=begin)
    assert sum(done) == planned[0]
    assert findings.failed_proofs == []
    verdicts = {claim.key: claim.verdict for claim in findings.claims}
    assert len(verdicts) == len(findings.claims) == 23
    assert verdicts["akl-mu-zero"] == verdicts["sweep-skl-alpha"] == "contradicted"
    assert verdicts["jsd-gradients-like-kl"] == "holds only when"
    assert set(findings.tables) == {
        "limits", "identities", "paths", "fields", "gradient_sizes", "sweeps", "sweep_spans", "disguise",
    }  # fmt: skip
    assert all(findings.tables.values())
    assert [picture.name for picture in findings.pictures] == [
        "two_classes", "three_classes", "akl", "paths", "limits", "gradient_sizes", "sweeps", "disguise",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("study.teacher=[0.3,0.6,0.1]", "study.teacher=[0.3, 0.6, 0.1]: must fall from class to class and sum to 1"),
        ("study.teacher=[0.6,0.3,0.2]", "study.teacher=[0.6, 0.3, 0.2]: must fall from class to class and sum to 1"),
        ("study.noises=[1,3]", "study.noises=[1.0, 3.0]: must fall from each to the next"),
        ("study.sweep=[0.5,0.1,0.9]", "study.sweep=[0.5, 0.1, 0.9]: must grow from each to the next"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused_in_one_line(word: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        settings(word)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
