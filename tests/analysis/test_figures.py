"""Figures: plain data, then a picture that a page or a paper can hold."""

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kdrun.analysis.figures import COLOURS, INK, MARKERS, STYLES, Plot, Series, as_svg, draw, key_sample, write_figure

SVG = "http://www.w3.org/2000/svg"
NASTY = '_run $x_1$ & "</script><script>alert(1)</script>]]>'


def plot(name: str = "fkl", **changes: object) -> Plot:
    series = (
        Series(NASTY, 0, [0.0, 1.0], [2.0, 1.0], y_error=[(0.5, 0.25)] * 2),
        Series("b", 6, [0.0, 1.0], [3.0, 2.5]),
    )
    return Plot(name, "FKL", "steps", "nats", series, levels=(("teacher", 2.25),), **changes)  # type: ignore[arg-type]


def test_a_look_is_told_apart_by_style_and_marker_where_colours_come_again() -> None:
    looks = [(COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]) for i in range(28)]
    assert len(set(looks)) == 28
    assert len({(colour, MARKERS[i % len(MARKERS)]) for i, (colour, _) in enumerate(looks)}) == 28


def test_an_svg_takes_the_colour_and_the_font_of_the_page_and_has_no_size() -> None:
    svg = as_svg(plot())
    root = ET.fromstring(svg)
    assert root.get("viewBox") == "0 0 420 280"
    assert root.get("width") is None
    assert "currentColor" in svg and INK not in svg and "#000000" not in svg
    assert "font-family" not in svg and "<style" not in svg and "<metadata" not in svg
    assert {"FKL"} <= {root.get("aria-label")}
    assert "teacher" in [text.text for text in root.iter("text")]


def test_no_identifier_is_in_two_pictures_and_every_reference_is_answered() -> None:
    seen: set[str] = set()
    for svg in (as_svg(plot("a")), as_svg(plot("b")), key_sample(0, prefix="k"), key_sample(0, prefix="l")):
        root = ET.fromstring(svg)
        own = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(own) == len(set(own)) and not seen & set(own)
        seen |= set(own)
        asked = {element.get("href", "#")[1:] for element in root.iter("use")}
        asked |= {clip[5:-1] for element in root.iter() if (clip := element.get("clip-path"))}
        assert asked <= set(own)


def test_the_parts_of_a_line_carry_its_class() -> None:
    classes = [element.get("class") for element in ET.fromstring(as_svg(plot())).iter()]
    # the line, and of its error bars the lines and two rows of caps
    assert classes.count("series look-0") == 4
    assert classes.count("series look-6") == 1


def test_a_name_is_text_and_never_markup_or_mathematics() -> None:
    forest = Plot("v", NASTY, NASTY, "", (Series(NASTY, 0, [0.1], [0.0], x_error=[(0.1, 0.1)]),), joined=False,
                  rows=(NASTY,))  # fmt: skip
    svg = as_svg(forest)
    assert "<script" not in svg
    texts = [text.text for text in ET.fromstring(svg).iter("text")]
    assert NASTY in texts
    assert f"{NASTY[:13]}..{NASTY[-13:]}" in texts  # a long name leaves room for the picture


def test_files_hold_the_picture_twice_and_the_numbers(tmp_path: Path) -> None:
    write_figure(plot(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fkl.csv", "fkl.png", "fkl.svg"]
    png = (tmp_path / "fkl.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == 420 * 300 // 72  # pixels across
    assert {NASTY, "b", "FKL"} <= {text.text for text in ET.parse(tmp_path / "fkl.svg").iter(f"{{{SVG}}}text")}
    with (tmp_path / "fkl.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["series", "kind", "steps", "nats", "x below", "x above", "y below", "y above"]
    assert lines[1] == [NASTY, "mean", "0.0", "2.0", "", "", "0.5", "0.25"]
    assert lines[-1] == ["teacher", "level", "", "2.25", "", "", "", ""]


@pytest.mark.parametrize("log", [False, True])
def test_levels_too_near_for_two_names_share_one(log: bool) -> None:
    near = Plot(
        "n", "", "mu", "FKL", (Series("", 0, [0.0, 1.0], [1.0, 9.0]),), levels=(("sft", 5.0), ("fkl", 5.01)), log=log
    )
    texts = [text.text for text in ET.fromstring(as_svg(near)).iter("text")]
    assert "sft, fkl" in texts and "sft" not in texts


def test_a_line_without_a_name_has_no_place_in_the_key() -> None:
    one = Plot("mu", "FKL against mu", "mu", "FKL", (Series("", 0, [0.1, 0.5], [2.0, 1.0]),))
    assert not draw(one, alone=True).legends
    assert len(draw(plot(), alone=True).legends[0].get_texts()) == 2
