"""A report says what the runs say, and nothing that a run wrote can break out of its place."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdrun.analysis.comparison import read_rows
from kdrun.analysis.report import facts, plots
from kdrun.analysis.report.generations import side_by_side
from kdrun.analysis.report.page import Findings, write_report
from kdrun.analysis.seeds import Group, group_by_seed
from kdrun.analysis.tables import main_headings
from kdrun.analysis.verdicts import find_baseline, verdicts
from kdrun.runs.directory import RunDirectory
from tests.analysis.reported_runs import NASTY, make_sweep


class Seen(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    return group_by_seed(read_rows([make_sweep(tmp_path_factory.mktemp("sweep"))]))


@pytest.fixture(scope="module")
def findings(groups: list[Group]) -> Findings:
    baseline = next(group for group in groups if "loss.mu" not in group.settings)
    others = [group for group in groups if group is not baseline and group.status == "done"]
    return Findings(groups, baseline, [(group, verdicts(group, baseline)) for group in others], ["a note"])


@pytest.fixture(scope="module")
def page(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(findings, path, path.with_name("report_files"))
    return path


def test_what_runs_wrote_is_shown_as_text_and_never_as_markup(page: Path) -> None:
    source = page.read_text()
    seen = Seen(source)
    assert not [tag for tag, _ in seen.tags if tag in ("script", "b<")]
    assert seen.text.count("alert(1)") == source.count("alert(1)") - _in_attributes(seen)
    assert NASTY in seen.text
    assert "49" not in re.findall(r"\]\]> (\S+)", seen.text)  # a template inside a text is not run
    assert "<b>the loss is not finite</b>" in seen.text


def _in_attributes(seen: Seen) -> int:
    return sum(str(value).count("alert(1)") for _, attributes in seen.tags for value in attributes.values())


def test_the_page_asks_for_nothing_outside_itself(page: Path) -> None:
    seen = Seen(page.read_text())
    links = [
        value for _, attributes in seen.tags for key, value in attributes.items() if key in ("src", "href", "data")
    ]
    assert all(link and link.startswith(("#", "data:,")) for link in links)
    assert "url(" not in re.sub(r"url\(#", "", page.read_text())
    assert not re.search(r"@import|javascript:", page.read_text())


def test_identifiers_are_unique_and_every_link_inside_the_page_arrives(page: Path) -> None:
    seen = Seen(page.read_text())
    own = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(own) == len(set(own))
    assert {str(a["href"])[1:] for tag, a in seen.tags if tag == "a"} <= set(own)


def test_every_figure_and_table_lies_beside_the_page(page: Path) -> None:
    folder = page.with_name("report_files")
    drawn = {str(attributes["id"]) for tag, attributes in Seen(page.read_text()).tags if tag == "figure"}
    assert {"curve-valid-fkl", "quick-fkl-against-loss.mu", "verdict-quick-fkl", "quick-fkl-against-train-s"} <= drawn
    for name in drawn:
        assert all((folder / f"{name}.{kind}").stat().st_size for kind in ("png", "svg", "csv"))
    tables = {path.name for path in folder.glob("table-*")}
    assert {"table-main.csv", "table-main.tex", "table-main.md", "table-cost.csv", "table-every-verdict.csv"} <= tables
    assert r"\toprule" in (folder / "table-main.tex").read_text()


def test_points_against_mu_are_means_and_bars_are_standard_deviations(page: Path) -> None:
    with (page.with_name("report_files") / "quick-nll-against-loss.mu.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    # examples add 0, 0.05, ... 0.35, 0.175 on average; seeds add 0.01 and 0.02: sd = 0.01 / sqrt(2)
    assert [float(line[2]) for line in lines[1:4]] == [0.3, 0.5, 0.7]
    assert [float(line[3]) for line in lines[1:4]] == pytest.approx([2.19, 2.29, 2.39])
    assert [float(line[7]) for line in lines[1:4]] == pytest.approx([0.01 / 2**0.5] * 3)
    assert lines[4][1] == "level" and float(lines[4][3]) == pytest.approx(2.49)  # what has no mu is a level


def test_better_is_said_only_where_the_interval_excludes_zero(findings: Findings) -> None:
    headings = main_headings([name for group in findings.groups for name in group.metrics])
    for (label, said), (group, found) in zip(facts.answer(findings.judged, headings), findings.judged, strict=True):
        assert label == group.label
        better = {headings[v.measure] for v in found if v.better and v.measure in headings and v.high < 0}
        assert {measure.split(" ")[0] for measure in said["better"]} >= better == {"NLL", "FKL"}


def test_the_question_names_what_differs_and_how_many_runs_there_are(findings: Findings) -> None:
    records = facts.read_records(findings.rows)
    question = facts.question(findings.groups, records, {"quick/nll": "NLL"})
    assert "loss.mu: 0.3, 0.5, 0.7 (no setting of" in question["What differs"]
    assert question["Runs"] == "9 of students (8 done, 1 failed) in 5 settings; seeds 1, 2"
    assert question["Evaluation quick"] == "8 examples, greedy"


def test_runs_that_failed_are_warned_of_with_their_error_and_dirty_trees_too(findings: Findings) -> None:
    for row in findings.rows:
        dirty = row.folder.name == "0-1"
        RunDirectory.open(row.folder, key="run").note(git={"commit": "c" * 40, "dirty": dirty}, hardware={"cores": 2})
    said = facts.cautions(findings.groups, facts.read_records(findings.rows))
    assert "broken: failed (ValueError: <b>the loss is not finite</b>)" in said
    assert any(line.startswith("1 of 9 runs with changes not committed to git: ") for line in said)
    assert not any("machines" in line or "commits" in line for line in said)
    RunDirectory.open(findings.rows[0].folder, key="run").note(hardware={"cores": 64})
    assert any(
        "2 different machines" in line for line in facts.cautions(findings.groups, facts.read_records(findings.rows))
    )


def test_texts_are_those_of_every_finished_run_and_the_choice_is_fixed(findings: Findings) -> None:
    found = side_by_side(findings.groups)
    assert found is not None and found.decoding == "greedy" and found.left_out == ["broken"]
    assert [(e.index, e.why) for e in found.examples[:3]] == [(i, "by position") for i in (0, 2, 5)]
    assert all(e.why == "runs differ most" for e in found.examples[3:])
    assert {len(e.texts) for e in found.examples} == {4} and {
        len(group) for e in found.examples for group in e.texts
    } == {2}


def test_settings_are_marked_where_runs_differ(findings: Findings) -> None:
    differ, configs = facts.configs(findings.rows)
    assert {"seed", "loss.name", "loss.mu"} <= set(differ) and "role" not in differ
    assert ("loss.mu: 0.3", True) in configs[0].lines and ("role: student", False) in configs[0].lines


def test_a_mean_curve_stands_on_the_steps_that_all_seeds_have(groups: list[Group]) -> None:
    main, _ = plots.curve_plots(groups, plots.looks(groups))
    fkl = next(plot for plot in main if plot.name == "curve-valid-fkl")
    bold = [series for series in fkl.series if not series.thin]
    assert len(bold) == len(groups) and len(fkl.series) == len(groups) + 8
    assert (list(bold[0].x), list(bold[0].y)) == ([0.0, 10.0], [10.5, 0.5])


def test_long_curves_are_thinned_but_keep_both_ends() -> None:
    x, y = plots._thinned({step: float(step) for step in range(1001)})
    assert len(x) <= plots.POINTS + 1 and (x[0], x[-1]) == (0.0, 1000.0) and x == y


def test_a_report_without_a_baseline_calls_nothing_better(groups: list[Group], tmp_path: Path) -> None:
    few = [group for group in groups if group.settings.get("loss.mu") == 0.3]
    write_report(Findings(few, None, [], []), tmp_path / "r.html", tmp_path / "files", title=NASTY)
    seen = Seen((tmp_path / "r.html").read_text())
    assert "No baseline was named" in seen.text
    assert not [1 for _, attributes in seen.tags if attributes.get("class") in ("better", "worse")]
    assert seen.text.count(NASTY) >= 2  # the title of the window and of the page


def test_the_baseline_is_found_by_the_name_of_its_group(groups: list[Group]) -> None:
    assert find_baseline(groups, groups[0].label) is groups[0]
