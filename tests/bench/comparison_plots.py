"""The two pictures of a comparison: bits a parameter against KL, and the ratio over the run.

Colours are Okabe and Ito's, which people with any colour vision tell apart; lines carry their names: no legend.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from comparison_equal import Equal
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLOURS = {
    "ckzd": "#0072B2",
    "ckzd paper": "#56B4E9",
    "ExCP + fill": "#E69F00",
    "ExCP": "#D55E00",
    "lossless": "#767676",
}
INK = COLOURS | {"ExCP + fill": "#9C6B00", "ckzd paper": "#2B86BD"}  # of names: the others are too pale to read
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#8C8C8C",
    "figure.dpi": 160,
}
QUIET = "#555555"
LARGE_GAP = 0.01  # of the loss over the next steps: hollow points
LABEL_POINTS = 12.0  # height of a line of text
LABEL_OFFSET = 10.0  # points from what it names
CLOSE_POINTS = 24.0  # the settings of a curve that are closer than this share a name
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)

Label = tuple[float, float, str, str]  # x, y, text, colour
Line = tuple[str, str, dict[int, float]]  # method, family, ratio by step


class Point(NamedTuple):
    """One method's delta."""

    name: str
    family: str
    bits: float
    kl: float
    resume_gap: float | None


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """The places moved to be `least` apart, within low to high if there is room, and in the same order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[tuple[float, list[int]]] = []  # centre, members
    for index in order:
        blocks.append((places[index], [index]))
        while len(blocks) > 1 and _edge(blocks[-2], least) > _edge(blocks[-1], -least):
            (centre, members), (other_centre, others) = blocks[-2:]
            mean = (centre * len(members) + other_centre * len(others)) / (len(members) + len(others))
            blocks[-2:] = [(mean, members + others)]
    moved = dict.fromkeys(order, 0.0)
    for centre, members in blocks:
        for position, index in enumerate(members):
            moved[index] = centre + (position - (len(members) - 1) / 2) * least
    for position, index in enumerate(reversed(order)):
        moved[index] = min(moved[index], high - position * least)
    for position, index in enumerate(order):
        moved[index] = max(moved[index], low + position * least)
    return [moved[index] for index in range(len(places))]


def _edge(block: tuple[float, list[int]], least: float) -> float:
    centre, members = block
    return centre + len(members) * least / 2


def _beside(axes: Axes, labels: Sequence[Label]) -> None:
    """Names to the right of what they name, moved apart, with a thin line where they moved far."""
    scale = axes.figure.dpi / 72
    heights = [axes.transData.transform((x, y))[1] / scale for x, y, _, _ in labels]
    box = axes.get_window_extent()
    moved = apart(heights, LABEL_POINTS, box.y0 / scale + LABEL_POINTS / 2, box.y1 / scale - LABEL_POINTS / 2)
    for (x, y, text, colour), height, at in zip(labels, heights, moved, strict=True):
        line = {"arrowstyle": "-", "color": "#B0B0B0", "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            text,
            (x, y),
            xytext=(LABEL_OFFSET, at - height),
            textcoords="offset points",
            va="center",
            color=colour,
            arrowprops=line if abs(at - height) > LABEL_POINTS / 3 else None,
            annotation_clip=False,
        )


def plot_rate(points: Sequence[Point], equal: Sequence[Equal], parameters: int, target: Path) -> None:
    """Bits a parameter against KL, both logarithmic; what is exact stands to the left, on a scale of its own."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.4))
        exact, lossy = figure.subplots(1, 2, width_ratios=(1, 2.6))
        figure.subplots_adjust(left=0.08, right=0.98, top=0.84, bottom=0.11, wspace=0.16)
        _exact_panel(exact, [point for point in points if point.kl == 0])
        measured = [point for point in points if point.kl > 0]
        if measured:
            _lossy_panel(lossy, measured)
            for each in equal:
                _factor(lossy, each, parameters)
        figure.text(0.08, 0.945, "Size and error of a delta, restored in closed loop", weight="bold", size=12)
        note = f"lower left is better; hollow: training goes on with a loss more than {100 * LARGE_GAP:.0f} % off"
        figure.text(0.08, 0.905, f"96 bits a parameter uncompressed; {note}", color=QUIET, size=9)
        figure.savefig(target)


def _bits_axis(axes: Axes, points: Sequence[Point], margin: float) -> None:
    """Logarithmic, with plain numbers."""
    axes.set_yscale("log")
    if points:
        axes.set_ylim(min(p.bits for p in points) / margin, max(p.bits for p in points) * margin)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _exact_panel(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside points; ckzd's in its colour."""
    axes.set_title("exact", size=10, color=QUIET)
    axes.set_ylabel("bits a parameter")
    _bits_axis(axes, points, 1.12)
    axes.yaxis.set_major_locator(FixedLocator(range(5, 200, 5)))
    axes.set_xlim(-0.2, 1.6)
    axes.set_xticks([0], ["KL 0"])
    colours = ["ckzd" if point.name.startswith("ckzd") else point.family for point in points]
    axes.scatter([0] * len(points), [p.bits for p in points], s=44, c=[COLOURS[c] for c in colours], zorder=3)
    _beside(axes, [(0.0, p.bits, p.name, INK[colour]) for p, colour in zip(points, colours, strict=True)])


def _lossy_panel(axes: Axes, points: Sequence[Point]) -> None:
    """A curve a family."""
    axes.set_title("lossy", size=10, color=QUIET)
    _bits_axis(axes, points, 1.35)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.set_xscale("log")
    axes.set_xlabel("KL to the original, nats a prediction")
    axes.set_xlim(min(p.kl for p in points) / 6, max(p.kl for p in points) * 8)  # room for names
    by_family = defaultdict(list)
    for point in points:
        by_family[point.family].append(point)
    ends = []
    for family, members in by_family.items():
        ends += _curve(axes, family, sorted(members, key=lambda point: point.kl))
    _beside(axes, ends)


def _factor(axes: Axes, equal: Equal, parameters: int) -> None:
    """A line from ckzd's curve to the baseline's at equal KL, with how much longer the baseline's delta is."""
    if equal.factor is None:
        return
    low, high = (8 * reading.size / parameters for reading in (equal.ckzd, equal.baseline))
    style = "dotted" if equal.extrapolated else "solid"
    arrow = {"arrowstyle": "<->", "color": "#333333", "linewidth": 0.9, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (equal.error, low), xytext=(equal.error, high), arrowprops=arrow)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    where = (equal.error, (low * high) ** 0.5)
    axes.annotate(f"{equal.factor:.2g}x", where, ha="center", va="center", bbox=box, color="#333333", weight="bold")


def _curve(axes: Axes, family: str, members: Sequence[Point]) -> list[Label]:
    """Points of one family, least KL first, joined, and a name for the end of the curve."""
    colour, ours, below = COLOURS[family], family.startswith("ckzd"), family == "ExCP + fill"
    axes.plot([point.kl for point in members], [point.bits for point in members], color=colour, linewidth=1.4)
    last = members[-1]
    across = [axes.transData.transform((point.kl, point.bits))[0] * 72 / axes.figure.dpi for point in members]
    named_at = -CLOSE_POINTS
    for (name, _, bits, kl, gap), at in zip(members, across, strict=True):
        hollow = gap is not None and abs(gap) > LARGE_GAP
        axes.plot(kl, bits, "o", color=colour, markersize=7, markerfacecolor="white" if hollow else colour, zorder=3)
        if ours:  # few: each has its whole name, to the lower left, where no other curve is
            offset = {"textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate(name, (kl, bits), xytext=(-6, -10), color=INK[family], **offset)
        elif at - named_at >= CLOSE_POINTS and across[-1] - at >= CLOSE_POINTS:
            named_at = at
            text = name.removeprefix(family).strip()
            offset = {"textcoords": "offset points", "ha": "center", "va": "center"}
            axes.annotate(text, (kl, bits), xytext=(0, -13 if below else 13), color=INK[family], **offset)
    return [] if ours else [(last.kl, last.bits, last.name, INK[family])]


def plot_ratios(lines: Sequence[Line], target: Path) -> None:
    """The ratio of each checkpoint over the run, logarithmic. The settings of one baseline are a band."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.4))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.085, right=0.76, top=0.86, bottom=0.11)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("ratio, original over archive")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.yaxis.set_minor_locator(NullLocator())
        ratios = [ratio for *_, by_step in lines for ratio in by_step.values()]
        axes.set_ylim(min(ratios) / 1.3, max(ratios) * 1.3)
        steps = [step for *_, by_step in lines for step in by_step]
        axes.set_xlim(min(steps) - 0.03 * (max(steps) - min(steps)), max(steps))
        axes.set_yticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick < max(ratios) * 1.3])
        labels = []
        for family in COLOURS:
            members = [line for line in lines if line[1] == family]
            labels += _band(axes, family, members) if family.startswith("ExCP") else _lines(axes, family, members)
        _beside(axes, labels)
        figure.text(0.085, 0.945, "Ratio of every checkpoint of the run, in closed loop", weight="bold", size=12)
        note = "the first is the base; bands: the baseline's thresholds; names with the last ratio"
        figure.text(0.085, 0.905, note, color=QUIET, size=9)
        figure.savefig(target)


def _lines(axes: Axes, family: str, members: Sequence[Line]) -> list[Label]:
    """A line and a label a method."""
    labels = []
    for name, _, ratios in members:
        ours = name.startswith("ckzd")
        colour = family if not ours or family != "lossless" else "ckzd"
        (*_, last_step), (*_, last) = ratios.keys(), ratios.values()
        axes.plot(ratios.keys(), ratios.values(), color=COLOURS[colour], linewidth=1.8 if ours else 1.0)
        labels.append((last_step, last, f"{name}  {last:.3g}x", INK[colour]))
    return labels


def _band(axes: Axes, family: str, members: Sequence[Line]) -> list[Label]:
    """From the least to the largest ratio of all settings, and a label for both ends."""
    if not members:
        return []
    colour, steps = COLOURS[family], list(members[0][2])
    each = [[ratios[step] for _, _, ratios in members if step in ratios] for step in steps]
    axes.fill_between(steps, [min(r) for r in each], [max(r) for r in each], color=colour, alpha=0.25, linewidth=0)
    labels = []
    for name, _, ratios in sorted(members, key=lambda line: list(line[2].values())[-1])[:: max(1, len(members) - 1)]:
        axes.plot(ratios.keys(), ratios.values(), color=colour, linewidth=1.0)
        labels.append((steps[-1], ratios[steps[-1]], f"{name}  {ratios[steps[-1]]:.3g}x", INK[family]))
    return labels
