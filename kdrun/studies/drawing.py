"""Pictures as PNG, SVG and CSV, animations as GIF: colours that colour-blind eyes tell apart, labels of one size."""

from __future__ import annotations

import csv
from pathlib import Path
from textwrap import fill
from typing import Any

from kdrun.analysis.curves import STYLES
from kdrun.analysis.figures import COLOURS, MARKERS
from kdrun.studies.pictures import Animation, Curve, Panel, Picture, Surface

PANEL = (3.4, 2.7)  # inches
INK = "#222222"
DPI = 200
FRAME_DPI = 100


def write_picture(picture: Picture, folder: Path) -> None:
    """Write NAME.png (200 dpi), NAME.svg (real text) and NAME.csv (every point drawn)."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(picture)
    figure.savefig(folder / f"{picture.name}.png", dpi=DPI, facecolor="white")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        figure.savefig(folder / f"{picture.name}.svg", facecolor="white", metadata={"Date": None})
    with (folder / f"{picture.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["panel", "series", "x", "y", "value"])
        for panel in picture.panels:
            for curve in panel.curves:
                writer.writerows([panel.title, curve.label, x, y, ""] for x, y in zip(curve.x, curve.y, strict=True))
            if panel.surface is not None:
                points = zip(panel.surface.x, panel.surface.y, panel.surface.values, strict=True)
                writer.writerows([panel.title, panel.surface.label, *point] for point in points)


def write_animation(animation: Animation, folder: Path) -> None:
    """Write NAME.gif; it runs for ever."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for frame in animation.frames:
        figure = draw(frame)
        figure.set_dpi(FRAME_DPI)
        figure.canvas.draw()
        image = Image.frombytes("RGBA", figure.canvas.get_width_height(), bytes(figure.canvas.buffer_rgba()))
        # by coverage: the median cut gives every colour to the greys of the letters, and a rare line changes its own
        images.append(image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE))
    images[0].save(
        folder / f"{animation.name}.gif", save_all=True, append_images=images[1:], loop=0, optimize=True,
        duration=[125] * (len(images) - 1) + [2000],  # ms: eight frames a second, the last one for two seconds
    )  # fmt: skip


def draw(picture: Picture) -> Any:
    """The matplotlib Figure of a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(picture.columns, len(picture.panels))
    rows = -(-len(picture.panels) // columns)
    named = _keyed(picture)
    per_row = max(1, round(columns * PANEL[0] / (0.6 + 0.085 * max((len(label) for label in named), default=1))))
    key_height = 0.24 * -(-len(named) // per_row)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1] + key_height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, picture.panels, strict=False):
        _draw_panel(axis, panel)
    for axis in axes[len(picture.panels) :]:
        axis.set_axis_off()
    title = fill(picture.title, round(12 * columns * PANEL[0]))
    figure.suptitle(title, x=0.01, ha="left", **_text(11))
    if named:
        figure.legend(
            [_handle(curve) for curve in named.values()], list(named), loc="outside lower left", ncols=per_row,
            frameon=False, fontsize=9, labelcolor=INK, handlelength=2.6,
        )  # fmt: skip
    return figure


def _keyed(picture: Picture) -> dict[str, Curve]:
    """label -> the first curve of that name."""
    found: dict[str, Curve] = {}
    for curve in (curve for panel in picture.panels for curve in panel.curves if curve.label):
        found.setdefault(curve.label, curve)
    return found


def _look(curve: Curve) -> tuple[str, str, str]:
    """Colour, line style and marker."""
    if curve.look < 0:
        return INK, "-", "."
    return COLOURS[curve.look % len(COLOURS)], STYLES[curve.look % len(STYLES)], MARKERS[curve.look % len(MARKERS)]


def _text(size: float) -> dict[str, Any]:
    """Settings of words that are no formula, whatever signs they hold."""
    return {"fontsize": size, "color": INK, "parse_math": False}


def _handle(curve: Curve) -> Any:
    from matplotlib.lines import Line2D

    colour, line, marker = _look(curve)
    style: Any = "none" if curve.kind == "points" else line
    return Line2D([], [], color=colour, linestyle=style, linewidth=1.6, marker=marker, markersize=4)


def _draw_panel(axis: Any, panel: Panel) -> None:
    if panel.surface is not None:
        _draw_surface(axis, panel.surface)
    if panel.log_x:
        axis.set_xscale("log")
    if panel.log_y:
        axis.set_yscale("log")
    for curve in panel.curves:
        _draw_curve(axis, curve)
    axis.set_title(panel.title, loc="left", **_text(9.5))
    if panel.surface is not None:
        _draw_triangle(axis)
    else:
        axis.set_xlabel(panel.x_label, **_text(9))
        axis.set_ylabel(panel.y_label, **_text(9))
        axis.tick_params(which="both", labelsize=8, color=INK, labelcolor=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=INK, alpha=0.13, linewidth=0.6)
    if panel.x_limits:
        axis.set_xlim(*panel.x_limits)
    if panel.y_limits:
        axis.set_ylim(*panel.y_limits)
    _draw_named_lines(axis, panel)


def _draw_curve(axis: Any, curve: Curve) -> None:
    colour, line, marker = _look(curve)
    if curve.kind == "points":
        axis.plot(curve.x, curve.y, color=colour, linestyle="none", marker=marker, markersize=3.4)
    else:
        every = max(1, len(curve.x) // 6)
        axis.plot(
            curve.x, curve.y, color=colour, linestyle=line, linewidth=1.6, marker=marker if curve.look >= 0 else None,
            markersize=3.6, markevery=(max(curve.look, 0) % every, every),
        )  # fmt: skip
    if curve.band is not None:
        axis.fill_between(curve.x, *curve.band, color=colour, alpha=0.15, linewidth=0)


def _draw_surface(axis: Any, surface: Surface) -> None:
    from matplotlib.colors import Normalize

    colours = axis.tripcolor(
        surface.x, surface.y, surface.values, norm=Normalize(*surface.limits), cmap="cividis", shading="gouraud",
        rasterized=True,
    )  # fmt: skip
    bar = axis.figure.colorbar(colours, ax=axis, shrink=0.85, pad=0.02)
    bar.set_label(surface.label, **_text(8))
    bar.ax.tick_params(labelsize=7, color=INK, labelcolor=INK)
    if surface.arrows:
        x, y, dx, dy = zip(*surface.arrows, strict=True)
        axis.quiver(x, y, dx, dy, color="white", edgecolor=INK, linewidth=0.4, width=0.009)


def _draw_triangle(axis: Any) -> None:
    places = ((0.0, 0.0), (1.0, 0.0), (0.5, 3**0.5 / 2))
    x, y = zip(*places, places[0], strict=True)
    axis.plot(x, y, color=INK, linewidth=0.8)
    for i, place in enumerate(places):
        vertical, shift = ("bottom", 3) if i == 2 else ("top", -3)
        axis.annotate(
            f"class {i + 1}", place, xytext=(0, shift), textcoords="offset points", ha="center", va=vertical, **_text(8)
        )
    axis.set_aspect("equal")
    axis.set_axis_off()


def _draw_named_lines(axis: Any, panel: Panel) -> None:
    for label, value in panel.levels:
        axis.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axis.annotate(label, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
                      textcoords="offset points", ha="right", va="bottom", **_text(8))  # fmt: skip
    for label, value in panel.marks:
        axis.axvline(value, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axis.annotate(label, (value, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
                      textcoords="offset points", ha="left", va="top", **_text(8))  # fmt: skip
