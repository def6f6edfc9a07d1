"""Plots as SVG, drawn by leather in colours of the pages' style sheet, so that they follow light and dark."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from functools import cache
from math import ceil, floor, log10
from types import ModuleType

WIDE, NARROW = (
    (800, 240),
    (340, 220),
)  # a desk's and a phone's: the letters of one that is scaled are too small or large
STEPS = (1, 2, 2.5, 5)


@cache
def library() -> ModuleType:
    """leather, in our colours. Imported when the first plot is drawn."""
    import leather

    theme = leather.theme
    theme.background_color, theme.margin = "none", 0.012
    theme.tick_color, theme.zero_color, theme.label_color = "var(--line)", "var(--soft)", "var(--soft)"
    theme.legend_color = "var(--soft)"
    theme.tick_font_family = theme.legend_font_family = "inherit"
    theme.tick_font_size = theme.legend_font_size = 13
    return leather  # type: ignore[no-any-return]


def columns(
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], str]],
    *,
    size: tuple[int, int],
    label: Callable[[str], str],
    value: Callable[[float], str],
) -> str:
    """Columns, each series `(name, values, colour)` in front of the one before it. The labels must differ."""
    chart = library().Chart()
    most = max((max(values, default=0.0) for _, values, _ in series), default=0.0)
    marks = ticks(most)
    for name, values, colour in series:
        chart.add_columns(list(zip(labels, values, strict=True)), name=name, fill_color=colour)
    every = max(1, -(-len(labels) * 64 // size[0]))  # a label takes about 60 units
    chart.add_x_axis(ticks=list(labels)[::-every][::-1], tick_formatter=lambda text, *_: label(text))
    chart.add_y_scale(0, marks[-1])
    chart.add_y_axis(ticks=marks, tick_formatter=lambda number, *_: value(float(number)))
    width, height = size
    box = f"0 -10 {width + 20} {height + 10}"  # the legend's first and the last day's letters stand a little outside
    root = ET.Element("svg", {"class": "plot", "viewBox": box, "aria-hidden": "true"})
    root.append(chart.to_svg_group(width, height))
    return ET.tostring(root, encoding="unicode")


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most` or just above it, four or five of them."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(most / 4))
    step = next(power * one for one in (*STEPS, 10) if power * one * 4 >= most * 0.999999)
    return [step * i for i in range(ceil(most / step * 0.999999) + 1)]
