"""The report in a real browser: nothing asked for outside, no complaint, nothing wider than the window."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdrun.commands.report import report
from tests.analysis.chromium import CHROMIUM, Chromium
from tests.analysis.reported_runs import NASTY, make_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    report([make_sweep(folder / "sweep")], folder / "report.html", baseline="3-1", title=NASTY)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window_and_asks_for_nothing(
    page: Path, chromium: Chromium, width: int, scheme: str, tmp_path: Path
) -> None:
    chromium.open(page, width=width, scheme=scheme)
    assert chromium.value("innerWidth") == width
    chromium.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.complaints() == []
    assert chromium.requests() == [page.as_uri()]
    assert chromium.value("document.scripts.length") == 0
    assert chromium.value("document.title") == " ".join(NASTY.split())
    assert chromium.screenshot(tmp_path / "seen.png").stat().st_size > 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper_in_figures_too(page: Path, chromium: Chromium, scheme: str) -> None:
    chromium.open(page, width=1280, scheme=scheme)
    script = "getComputedStyle(document.querySelector('{}')).{}"
    paper = luminance(chromium.value(script.format("body", "backgroundColor")))
    for part, colour in (("body", "color"), ("svg.plot text", "fill"), (".note", "color"), ("nav a", "color")):
        ink = luminance(chromium.value(script.format(part, colour)))
        # WCAG 2.2: 4.5 for text
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5, part
    assert (paper < 0.1) == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b), by WCAG 2.2."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_in_figures_is_read_at_both_widths(page: Path, chromium: Chromium) -> None:
    for width in (1280, 400):
        chromium.open(page, width=width, scheme="light")
        heights = "[...document.querySelectorAll('.panels text')].map(text => text.getBoundingClientRect().height)"
        assert min(chromium.value(heights)) >= 10  # px: the height of a line, about the size of its type


def test_pointing_at_a_name_leaves_its_lines_alone(page: Path, chromium: Chromium) -> None:
    chromium.open(page, width=1280, scheme="light")
    chromium.value("document.querySelector('.key-1').focus()")
    chromium("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 400))", awaitPromise=True)
    lines = "[...document.querySelectorAll('.panels .series')]"
    opacities = f"{lines}.map(line => [line.classList[1], getComputedStyle(line).opacity])"
    found = {tuple(pair) for pair in chromium.value(opacities)}
    assert ("look-1", "1") in found and ("look-1", "0.1") not in found
    assert ("look-0", "0.1") in found and ("look-0", "1") not in found
