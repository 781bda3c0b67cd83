"""Drawn figures as plain data first: what is in a picture, then the picture as SVG, PNG and CSV."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.analysis.comparison import write_sheet
from kdrun.analysis.curves import STYLES

WIDTH, HEIGHT = 420, 280  # px on a page, points on paper
INK = "#010203"  # as good as black; inside a page it becomes the page's own text colour
# Okabe and Ito's colours that show on white and on black, then the ink; style and marker tell lines apart without them.
# 7 colours, 4 styles and 8 markers share no divisor but 4 and 8: 28 looks before a colour and style come again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Series:
    """Points of one name; `look` is its number on the whole page, the same in every figure.

    x_error, y_error: (below, above) a point, both positive.
    """

    label: str
    look: int
    x: Sequence[float]
    y: Sequence[float]
    x_error: Sequence[tuple[float, float]] | None = None
    y_error: Sequence[tuple[float, float]] | None = None
    thin: bool = False  # one seed of several, drawn behind their mean


@dataclass(frozen=True)
class Plot:
    """One panel. `levels`: horizontal lines. `rows`: names of 0, 1, ... on the y axis, from the top."""

    name: str  # of its files, and in front of its identifiers
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    joined: bool = True
    log: bool = False
    levels: tuple[tuple[str, float], ...] = ()
    rows: tuple[str, ...] = ()
    note: str = ""
    own_key: bool = False  # its series are not the page's: it needs a key inside


def colour(look: int) -> str:
    """The colour of a look."""
    return COLOURS[look % len(COLOURS)]


def draw(plot: Plot, *, alone: bool) -> Any:
    """A matplotlib Figure; `alone` gives it the title and the key that a page sets around it."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys((one.label, one.look) for one in plot.series if one.label and not one.thin))
    columns = 2 if max((len(label) for label, _ in labels), default=0) < 28 else 1
    keyed = (alone or plot.own_key) and not plot.rows
    height = 90 + 24 * len(plot.rows) if plot.rows else HEIGHT
    height += (28 if alone else 0) + (18 * -(-len(labels) // columns) if keyed else 0)
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    axes = figure.subplots()
    for series in plot.series:
        _draw_series(axes, series, joined=plot.joined)
    _draw_levels(axes, plot)
    _dress(axes, plot)
    if alone:
        axes.set_title(plot.title, fontsize=12, loc="left", color=INK, parse_math=False)
    if keyed and labels:
        _draw_key(figure, labels, columns, joined=plot.joined)
    return figure


def as_svg(plot: Plot) -> str:
    """An <svg> element for a page: no size, the page's font and text colour, identifiers that begin with the name."""
    return _inlined(_svg(draw(plot, alone=False), plot.name), prefix=plot.name, label=plot.title)


def key_sample(look: int, *, prefix: str) -> str:
    """An <svg> element of 36 x 12 px: the line and marker of a look; a prefix for each place on a page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.5, 12 / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.plot([0, 1, 2], [0, 0, 0], **_look(look, joined=True), markevery=[1], markersize=5)
    axes.set_xlim(0, 2)
    return _inlined(_svg(figure, f"key-{look}"), prefix=f"{prefix}-{look}-", label="", size=(36, 12))


def write_figure(plot: Plot, folder: Path) -> None:
    """Write NAME.png (300 dpi, white), NAME.svg (real text) and NAME.csv (every point drawn)."""
    figure = draw(plot, alone=True)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{plot.name}.png", dpi=300, facecolor="white")
    figure.set_layout_engine("none")  # stays as it is now
    (folder / f"{plot.name}.svg").write_text(_svg(figure, plot.name), encoding="utf-8")
    header = ["series", "kind", plot.x_label, plot.y_label, "x below", "x above", "y below", "y above"]
    lines: list[list[Any]] = [header]
    for series in plot.series:
        none = [("", "")] * len(series.x)
        points = zip(series.x, series.y, series.x_error or none, series.y_error or none, strict=True)
        kind = "seed" if series.thin else "mean"
        lines += [[series.label, kind, x, y, *x_error, *y_error] for x, y, x_error, y_error in points]
    lines += [[label, "level", "", value, "", "", "", ""] for label, value in plot.levels]
    write_sheet(folder / f"{plot.name}.csv", lines)


def _look(look: int, *, joined: bool) -> dict[str, Any]:
    """matplotlib's words for a line with its markers, or for the markers alone."""
    line: dict[str, Any] = {"linestyle": STYLES[look % len(STYLES)], "linewidth": 1.8}
    return {"color": colour(look), "marker": MARKERS[look % len(MARKERS)]} | (line if joined else {"linestyle": "none"})


def _draw_series(axes: Any, series: Series, *, joined: bool) -> None:
    identifier = f"look-{series.look}"
    if series.thin:
        axes.plot(series.x, series.y, gid=identifier, color=colour(series.look), linewidth=0.8, alpha=0.4)
        return
    # Six markers a line, not in the same places on every line.
    every = max(1, len(series.x) // 6)
    shape = {"markevery": (series.look % every, every), "markersize": 4.5} if joined else {"markersize": 6.5}
    axes.plot(series.x, series.y, gid=identifier, **_look(series.look, joined=joined), **shape)
    if series.x_error or series.y_error:
        x_error, y_error = (list(zip(*pairs, strict=True)) if pairs else None
                            for pairs in (series.x_error, series.y_error))  # fmt: skip
        bars = axes.errorbar(
            series.x, series.y, y_error, x_error, fmt="none", ecolor=colour(series.look), elinewidth=1.2, capsize=3
        )
        for part in (*bars.lines[1], *bars.lines[2]):
            part.set_gid(identifier)


def _draw_levels(axes: Any, plot: Plot) -> None:
    low, high = axes.get_ylim()
    named: list[tuple[str, float]] = []
    for label, value in sorted(plot.levels, key=lambda level: level[1]):
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        near = named and value - named[-1][1] < 0.05 * (high - low)  # too near for a name of its own
        named.append((f"{named[-1][0]}, {label}", named.pop()[1]) if near else (label, value))
    for label, value in named:
        axes.annotate(
            _short(label, 50), (1, value), xycoords=("axes fraction", "data"),
            xytext=(0, 2), textcoords="offset points", ha="right", va="bottom",
            fontsize=11, color=INK, parse_math=False,
        )  # fmt: skip


def _dress(axes: Any, plot: Plot) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xlabel(plot.x_label, fontsize=12, color=INK, parse_math=False)
    axes.set_ylabel(plot.y_label, fontsize=12, color=INK, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if plot.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if plot.rows:
        axes.set_yticks(range(len(plot.rows)), [_short(row, 28) for row in plot.rows], parse_math=False)
        axes.set_ylim(len(plot.rows) - 0.5, -0.5)
        axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    axes.tick_params(labelsize=12, color=INK, labelcolor=INK)
    axes.grid(color=INK, alpha=0.13, linewidth=0.8)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)


def _draw_key(figure: Any, labels: list[tuple[str, int]], columns: int, *, joined: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(look, joined=joined), markersize=5) for _, look in labels]
    numbers = [str(i) for i in range(len(labels))]  # a name that begins with _ would be left out
    key = figure.legend(
        handles, numbers, loc="outside lower left", ncols=columns, frameon=False, fontsize=11, labelcolor=INK
    )
    for text, (label, _) in zip(key.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_short(label, 60))


def _short(label: str, length: int) -> str:
    """A label that leaves room for the picture: what tells runs apart stands at both ends of their names."""
    half = length // 2 - 1
    return label if len(label) <= length else f"{label[:half]}..{label[-half:]}"


def _svg(figure: Any, salt: str) -> str:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _inlined(svg: str, *, prefix: str, label: str, size: tuple[int, int] | None = None) -> str:
    """The picture inside a page: what would reach out of it (style, identifiers, colour, font) is taken in."""
    root = ET.fromstring(svg)
    for part in ("metadata", "defs"):
        for child in root.findall(f"{SVG}{part}"):
            if part == "metadata" or child.find(f"{SVG}style") is not None:
                root.remove(child)
    for element in root.iter():
        element.tag = str(element.tag).removeprefix(SVG)
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.attrib[name.split("}")[-1]] = value.replace("url(#", f"url(#{prefix}").replace(INK, "currentColor")
        if target := element.attrib.get("href"):
            element.attrib["href"] = f"#{prefix}{target.removeprefix('#')}"
        if (identifier := element.attrib.pop("id", None)) is None:
            continue
        if identifier.startswith("look-"):
            element.attrib["class"] = f"series {identifier}"
        elif element.tag in ("path", "clipPath"):  # the only ones that are pointed at
            element.attrib["id"] = prefix + identifier
    for element in root.iter("text"):
        style = element.attrib["style"]  # the size is kept, the family is the page's
        element.attrib["style"] = re.sub(
            r"font: .*?([\d.]+px)[^;]*", r"font-size: \1", re.sub(r"font-family: [^;]*; ?", "", style)
        )
    for element in root.iter("path"):
        element.attrib["d"] = re.sub(r"(\.\d\d)\d+", r"\1", element.attrib["d"])  # a hundredth of a pixel is enough
    for name in ("width", "height"):
        del root.attrib[name]
    if size:
        root.attrib |= {"width": str(size[0]), "height": str(size[1])}
    root.attrib.pop("version", None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return ET.tostring(root, encoding="unicode")
