"""The plots of the report, as inline SVG whose colours follow the page's light or dark theme."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Rows = Sequence[Mapping[str, Any]]
Draw = Callable[[Figure], None]

# matplotlib wants fixed colours and the page has two themes: these stand for CSS variables and are replaced in the SVG
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
REAL, DREAM, GOOD = "#050505", "#060606", "#070707"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card", REAL: "real", DREAM: "dream", GOOD: "good"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and uses the page's own font
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,
}
VIDEOS = (("real", REAL), ("imagined", DREAM))
SMALL, WIDE = (360, 236), (900, 300)  # points; a small plot is half a row on a desk and a whole one on a phone


def svg(draw: Draw, label: str, size: tuple[int, int]) -> str:
    """Draws on an empty figure and returns SVG to put into a page, scaling with its container."""
    salt = f"{label} {size}"  # ids must differ between the plots of a page, and not between two renderings of a run
    font: dict[Any, Any] = {"font.size": 11.5 if size[0] > 500 else 10, "svg.hashsalt": salt}
    with matplotlib.rc_context({**STYLE, **font}):
        figure, file = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained"), io.StringIO()
        draw(figure)
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()[file.getvalue().index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox, "matplotlib's SVG has a view box"
    head = f'<svg {viewbox[0]} role="img" aria-label="{html.escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    text = head + text[text.index(">") + 1 :]
    return re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found[0]]})", text)


def small(draw: Draw, label: str, size: tuple[int, int] = SMALL) -> str:
    return f'<div class="plot">{svg(draw, label, size)}</div>'


def both(draw: Draw, label: str, wide: tuple[int, int] = WIDE, narrow: tuple[int, int] = SMALL) -> str:
    """A plot over the whole width, drawn twice: shrinking the wide one would leave a phone with illegible letters."""
    return "".join(
        f'<div class="plot {name}">{svg(draw, label, size)}</div>'
        for name, size in (("wide", wide), ("narrow", narrow))
    )


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), for the bars of the audits."""
    z, p = 1.96, successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def column(rows: Rows, x: str, y: str) -> tuple[list[float], list[float]]:
    """The (x, y) pairs of the rows that have a finite y."""
    pairs = [(row[x], row[y]) for row in rows if x in row and isinstance(row.get(y), int | float)]
    pairs = [pair for pair in pairs if math.isfinite(pair[1])]
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def _percent(axes: Axes, axis: str = "y") -> None:
    getattr(axes, f"set_{axis}lim")(-0.02, 1.02)
    which = axes.yaxis if axis == "y" else axes.xaxis
    which.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    which.set_major_locator(MaxNLocator(5))


def _legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Above the axes, where it hides no line."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, handlelength=1.6)


def success(base: Mapping[str, Any], improved: Mapping[str, Any]) -> str:
    """Base and improved success with their intervals, one line a decoding."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = [name for name in ("best", "sampled", "greedy") if name in base and name in improved]
        for record, shift, colour, label in ((base, 0.14, MUTED, "base"), (improved, -0.14, REAL, "improved")):
            for y, name in enumerate(names):
                (low, high), value = record[name]["interval"], record[name]["success"]
                axes.plot([low, high], [y + shift] * 2, color=colour, linewidth=5, alpha=0.3)
                axes.plot(value, y + shift, "o", color=colour, markersize=7, label="" if y else label)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.5, len(names) - 0.5)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _percent(axes, "x")
        _legend(figure, axes)

    return small(draw, "Real success of the base and the improved policy by decoding")


def learning(rows: Rows, audits: Rows, base: float | None, kept: int | None, rounds: Sequence[int] = ()) -> str:
    """Imagined success while training, with what the real audits found. ``rounds`` are iterations after which a new
    round began: there imagined success breaks, because it is another dream."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = [*rounds, math.inf]
        for begin, end in zip([-math.inf, *rounds], ends, strict=True):
            x, y = column([row for row in rows if begin < row["iteration"] <= end], "iteration", "imagined_success")
            axes.plot(x, y, color=DREAM, label=None if end < ends[-1] else "imagined, in training")
        for end in rounds:
            axes.axvline(end + 0.5, color=GRID, linewidth=1.2, label=None if end < ends[-2] else "new round")
        x, y = column(audits, "iteration", "imagined")
        axes.plot(x, y, "D", markerfacecolor=PAPER, color=DREAM, label="imagined, in an audit")
        played = [a for a in audits if a.get("n") and isinstance(a.get("real"), int | float)]
        if played:
            x, y = column(played, "iteration", "real")
            bars = [wilson(a["real"] * a["n"], a["n"]) for a in played]
            spread = [
                [v - b[0] for v, b in zip(y, bars, strict=True)],
                [b[1] - v for v, b in zip(y, bars, strict=True)],
            ]
            axes.errorbar(x, y, yerr=spread, fmt="o", color=REAL, elinewidth=1.2, label="real, in an audit")
        if base is not None:
            axes.axhline(base, color=REAL, linestyle=(0, (4, 3)), linewidth=1.2, label="base policy, real, sampled")
        if kept is not None:
            axes.axvline(kept, color=GOOD, linewidth=6, alpha=0.25, label="policy that was kept")
        axes.set_xlabel("iteration of GRPO")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _percent(axes)
        _legend(figure, axes, 5 if figure.get_figwidth() > 7 else 2)

    return both(draw, "Imagined and real success by iteration", narrow=(360, 300))


def panels(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str, columns: int = 4) -> str:
    """Small curves side by side, one for each title that has values."""
    shown = {title: xy for title, xy in series.items() if xy[0]}

    def draw(figure: Figure) -> None:
        across = columns if figure.get_figwidth() > 7 else 2
        for place, (title, (x, y)) in enumerate(shown.items()):
            axes = figure.add_subplot(math.ceil(len(shown) / across), across, place + 1)
            axes.plot(x, y, color=INK, linewidth=1.2)
            axes.set_title(title, loc="left", fontsize=10)
            axes.tick_params(labelsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))

    heights = [40 + 120 * math.ceil(len(shown) / across) for across in (columns, 2)]
    return both(draw, label, (900, heights[0]), (360, heights[1])) if shown else ""


def distance_by_chunk(distance: Sequence[float], tokenizer: float | None) -> str:
    """How an imagined replay drifts away from the real video."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(range(1, len(distance) + 1), distance, "o-", color=DREAM, markersize=4, label="imagined replay")
        if tokenizer is not None:
            axes.axhline(tokenizer, color=MUTED, linestyle=(0, (4, 3)), label="tokenizer alone")
        axes.set_ylim(0, 1.15 * max([*distance, tokenizer or 0.0]))
        axes.set_xlabel("chunk of the episode")
        axes.set_ylabel("mean pixel distance")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, axes)

    return small(draw, "Distance of imagined replays to the real video by chunk")


def distance_in_training(checks: Rows) -> str:
    """First and last chunk's distance at each check of the world model's training; empty where there was one check."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = [check["step"] for check in checks]
        axes.plot(x, [c["distance"][-1] for c in checks], "o-", color=DREAM, markersize=4, label="last chunk")
        axes.plot(
            x, [c["distance"][0] for c in checks], "o-", color=DREAM, markersize=4, alpha=0.4, label="first chunk"
        )
        axes.set_ylim(0, 1.15 * max(max(check["distance"]) for check in checks))
        axes.set_xlabel("training step")
        axes.set_ylabel("mean pixel distance")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _legend(figure, axes)

    return small(draw, "Distance of held-out imagined replays during training") if len(checks) > 1 else ""


def roc(reward: Mapping[str, Any]) -> str:
    """True against false alarms over all thresholds, with the calibrated one marked; empty where no curve was saved."""
    curves = [(name, reward[name], colour) for name, colour in VIDEOS if reward.get(name, {}).get("roc")]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
        for name, rates, colour in curves:
            points = sorted(tuple(point) for point in rates["roc"])
            axes.plot(*zip(*points, strict=True), color=colour, drawstyle="steps-post", label=f"{name} videos")
            axes.plot(rates["fpr"], rates["tpr"], "o", color=colour, markersize=7)
        axes.set_xlabel("false alarms (FPR)")
        axes.set_ylabel("successes found (TPR)")
        _percent(axes)
        _percent(axes, "x")
        _legend(figure, axes)

    return small(draw, "ROC of the success classifier") if curves else ""


def reliability(reward: Mapping[str, Any]) -> str:
    """Does a score of 80 % mean success in 80 % of cases? Empty where it was not saved."""
    curves = [(name, reward[name], colour) for name, colour in VIDEOS if reward.get(name, {}).get("reliability")]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
        for name, rates, colour in curves:
            x, y, count = zip(*sorted(tuple(bin_) for bin_ in rates["reliability"]), strict=True)
            axes.plot(x, y, color=colour, label=f"{name} videos")
            axes.scatter(x, y, [12 + 90 * c / sum(count) for c in count], color=colour)
        axes.set_xlabel("score of the classifier")
        axes.set_ylabel("really solved")
        _percent(axes)
        _percent(axes, "x")
        _legend(figure, axes)

    return small(draw, "Reliability of the success classifier") if curves else ""


def agreement(points: Sequence[tuple[float, float]]) -> str:
    """(real, imagined) success of policies; on the diagonal the dream is right."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
        axes.plot(*zip(*points, strict=True), "o", color=DREAM, markersize=6)
        axes.set_xlabel("real success")
        axes.set_ylabel("imagined success")
        _percent(axes)
        _percent(axes, "x")

    return small(draw, "Imagined against real success of policies")


def stage_times(seconds: Mapping[str, float]) -> str:
    """Minutes by stage, in the order in which they ran."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names, minutes = list(seconds)[::-1], [s / 60 for s in list(seconds.values())[::-1]]
        bars = axes.barh(names, minutes, color=REAL, height=0.62)
        axes.bar_label(bars, [f"{m:.1f}" for m in minutes], padding=4, color=MUTED)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)
        axes.set_xlabel("minutes")

    return small(draw, "Minutes by stage", (360, 60 + 22 * len(seconds)))
