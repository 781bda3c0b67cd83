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
    each = round(1000 / animation.frames_per_s)
    images[0].save(
        folder / f"{animation.name}.gif", save_all=True, append_images=images[1:], loop=0, optimize=True,
        duration=[each] * (len(images) - 1) + [2000],
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
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left", parse_math=False)
    if named:
        figure.legend(
            [_handle(curve) for curve in named.values()], list(named), loc="outside lower left", ncols=per_row,
            frameon=False, fontsize=9, labelcolor=INK, handlelength=2.6,
        )  # fmt: skip
    return figure


def _keyed(picture: Picture) -> dict[str, Curve]:
    """label -> the first curve of that name."""
    found: dict[str, Curve] = {}
    for panel in picture.panels:
        for curve in panel.curves:
            if curve.label and not curve.faint:
                found.setdefault(curve.label, curve)
    return found


def _style(curve: Curve) -> dict[str, Any]:
    if curve.look < 0:
        return {"color": INK, "linestyle": "-"}
    colour = COLOURS[curve.look % len(COLOURS)]
    return {"color": colour, "linestyle": STYLES[curve.look % len(STYLES)]}


def _handle(curve: Curve) -> Any:
    from matplotlib.lines import Line2D

    style = _style(curve)
    if curve.kind == "points":
        style["linestyle"] = "none"
    marker = MARKERS[curve.look % len(MARKERS)] if curve.look >= 0 else "."
    return Line2D([], [], **style, linewidth=1.6, marker=marker, markersize=4)


def _draw_panel(axis: Any, panel: Panel) -> None:
    if panel.surface is not None:
        _draw_surface(axis, panel.surface)
    if panel.log_x:
        axis.set_xscale("log")
    if panel.log_y:
        axis.set_yscale("log")
    for curve in panel.curves:
        _draw_curve(axis, curve)
    axis.set_title(panel.title, fontsize=9.5, loc="left", color=INK, parse_math=False)
    if panel.simplex is not None:
        _draw_triangle(axis, panel.simplex)
    else:
        axis.set_xlabel(panel.x_label, fontsize=9, color=INK, parse_math=False)
        axis.set_ylabel(panel.y_label, fontsize=9, color=INK, parse_math=False)
        axis.tick_params(which="both", labelsize=8, color=INK, labelcolor=INK)
        axis.spines[["top", "right"]].set_visible(False)
        if panel.surface is None:
            axis.grid(color=INK, alpha=0.13, linewidth=0.6)
    if panel.x_limits:
        axis.set_xlim(*panel.x_limits)
    if panel.y_limits:
        axis.set_ylim(*panel.y_limits)
    _draw_named_lines(axis, panel)


def _draw_curve(axis: Any, curve: Curve) -> None:
    style, marker = _style(curve), MARKERS[curve.look % len(MARKERS)] if curve.look >= 0 else "."
    if curve.faint:
        axis.plot(curve.x, curve.y, color=style["color"], linewidth=0.6, alpha=0.35)
        return
    if curve.kind == "points":
        axis.plot(curve.x, curve.y, color=style["color"], linestyle="none", marker=marker, markersize=3.4)
    else:
        every = max(1, len(curve.x) // 6)
        axis.plot(
            curve.x, curve.y, **style, linewidth=1.6, marker=marker if curve.look >= 0 else None, markersize=3.6,
            markevery=(max(curve.look, 0) % every, every), drawstyle="steps-post" if curve.kind == "stairs" else None,
        )  # fmt: skip
    if curve.band is not None:
        axis.fill_between(curve.x, *curve.band, color=style["color"], alpha=0.15, linewidth=0)


def _draw_surface(axis: Any, surface: Surface) -> None:
    from matplotlib.colors import LogNorm, Normalize

    low, high = surface.limits or (min(surface.values), max(surface.values))
    norm = LogNorm(low, high) if surface.log else Normalize(low, high)
    colours = axis.tripcolor(
        surface.x, surface.y, surface.values, norm=norm, cmap="cividis", shading="gouraud", rasterized=True
    )
    bar = axis.figure.colorbar(colours, ax=axis, shrink=0.85, pad=0.02)
    bar.set_label(surface.label, fontsize=8, color=INK, parse_math=False)
    bar.ax.tick_params(labelsize=7, color=INK, labelcolor=INK)
    if surface.arrows:
        x, y, dx, dy = zip(*surface.arrows, strict=True)
        axis.quiver(x, y, dx, dy, color="white", edgecolor=INK, linewidth=0.4, width=0.009)


def _draw_triangle(axis: Any, corners: tuple[str, str, str]) -> None:
    places = ((0.0, 0.0), (1.0, 0.0), (0.5, 3**0.5 / 2))
    x, y = zip(*places, places[0], strict=True)
    axis.plot(x, y, color=INK, linewidth=0.8)
    for name, (left, bottom), vertical in zip(corners, places, ("top", "top", "bottom"), strict=True):
        shift = -3 if vertical == "top" else 3
        axis.annotate(
            name, (left, bottom), xytext=(0, shift), textcoords="offset points", ha="center", va=vertical,
            fontsize=8, color=INK, parse_math=False,
        )  # fmt: skip
    axis.set_aspect("equal")
    axis.set_axis_off()


def _draw_named_lines(axis: Any, panel: Panel) -> None:
    words = {"fontsize": 8, "color": INK, "parse_math": False}
    for label, value in panel.levels:
        axis.axhline(value, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axis.annotate(label, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
                      textcoords="offset points", ha="right", va="bottom", **words)  # fmt: skip
    for label, value in panel.marks:
        axis.axvline(value, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axis.annotate(label, (value, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
                      textcoords="offset points", ha="left", va="top", **words)  # fmt: skip
    for label, x, y in panel.notes:
        axis.annotate(label, (x, y), xytext=(3, 3), textcoords="offset points", **words)
