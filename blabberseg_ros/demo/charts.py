# SPDX-License-Identifier: Apache-2.0
"""Charts over time as inline SVG. Colours are CSS variables of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One thing that is drawn.

    Attributes:
        name: in the legend.
        points: time in seconds and value.
        colour: a CSS colour.
        kind: `line`, `dashed`, `dots` or `area` (areas are stacked in their order).
    """

    name: str
    points: Points
    colour: str
    kind: str = 'line'


@dataclass(frozen=True)
class Mark:
    """A moment that all charts show.

    Attributes:
        time_s: when.
        text: at the top of its line.
    """

    time_s: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart over time.

    Attributes:
        title: for those who do not see it.
        unit: of the values.
        series: what is drawn.
        marks: vertical lines.
        end_s: right end of the time axis.
        top: upper end of the value axis; None: the largest value.
        levels: horizontal lines, each a value and a text.
    """

    title: str
    unit: str
    series: Sequence[Series]
    marks: Sequence[Mark]
    end_s: float
    top: float | None = None
    levels: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class _Frame:
    """The plot's rectangle in SVG units, and the ranges it shows."""

    left: float
    top: float
    right: float
    bottom: float
    end_s: float
    highest: float

    def x(self, time_s: float) -> float:
        """Return the place of a time, kept inside."""
        share = min(max(time_s / self.end_s, 0.0), 1.0)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the place of a value, kept inside."""
        share = min(max(value / self.highest, 0.0), 1.0)
        return self.bottom - share * (self.bottom - self.top)


def draw(chart: Chart) -> str:
    """Return the chart as HTML: a legend, and one SVG for wide and one for narrow screens.

    Text in an SVG shrinks with it, so that one drawing cannot serve both.
    """
    legend = ''.join(
        f'<li><i class="key {series.kind}" style="--c:{series.colour}"></i>'
        f'{escape(series.name)}</li>' for series in chart.series)
    return (f'<ul class="legend">{legend}</ul>'
            f'<div class="wide">{_svg(chart, 960, 280)}</div>'
            f'<div class="narrow">{_svg(chart, 380, 260)}</div>')


def nice_step(span: float, count: int) -> float:
    """Return a round distance between axis marks: 1, 2 or 5 times a power of ten."""
    rough = max(span, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _svg(chart: Chart, width: float, height: float) -> str:
    stack = _stacked(chart.series)
    highest = chart.top or max(
        [value for series in (*chart.series, *stack) for _, value in series.points
         if math.isfinite(value)], default=1.0) or 1.0
    step = nice_step(highest, 4)
    highest = math.ceil(highest / step - 1e-6) * step
    frame = _Frame(52, 34, width - 14, height - 40, max(chart.end_s, 1e-3), highest)
    parts = [f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
             f'aria-label="{escape(chart.title)}">']
    parts += _axes(frame, step, chart.unit, 8 if width > 600 else 4)
    parts += _areas(frame, chart.series, stack)
    parts += [_drawn(frame, series) for series in chart.series if series.kind != 'area']
    for value, text in chart.levels:
        y = frame.y(value)
        parts.append(f'<line class="level" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" '
                     f'y2="{y:.1f}"/><text class="note" x="{frame.right - 4}" '
                     f'y="{y - 5:.1f}" text-anchor="end">{escape(text)}</text>')
    parts += _marks(frame, chart.marks, width)
    return ''.join([*parts, '</svg>'])


def _axes(frame: _Frame, step: float, unit: str, time_marks: int) -> list[str]:
    parts = []
    for index in range(round(frame.highest / step) + 1):
        value = index * step
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" '
                     f'y2="{y:.1f}"/><text x="{frame.left - 8}" y="{y + 4:.1f}" '
                     f'text-anchor="end">{value:g}</text>')
    time_step = nice_step(frame.end_s, time_marks)
    for index in range(int(frame.end_s / time_step + 1e-6) + 1):
        time_s = index * time_step
        parts.append(f'<text x="{frame.x(time_s):.1f}" y="{frame.bottom + 18}" '
                     f'text-anchor="middle">{time_s:g}</text>')
    parts.append(f'<text class="unit" x="{frame.left - 40}" y="14">{escape(unit)}</text>')
    parts.append(f'<text class="unit" x="{(frame.left + frame.right) / 2:.1f}" '
                 f'y="{frame.bottom + 36}" text-anchor="middle">time in s</text>')
    return parts


def _stacked(series: Sequence[Series]) -> list[Series]:
    """Return the areas, each on top of those before it."""
    base: dict[float, float] = {}
    stacked = []
    for item in series:
        if item.kind == 'area':
            base = {time_s: base.get(time_s, 0.0) + value for time_s, value in item.points}
            stacked.append(Series(item.name, list(base.items()), item.colour, item.kind))
    return stacked


def _areas(frame: _Frame, series: Sequence[Series], stack: Sequence[Series]) -> list[str]:
    parts = []
    lower = ''
    for item in stack:
        if not item.points:
            continue
        if not lower:
            lower = ' '.join(f'{frame.x(t):.1f},{frame.bottom:.1f}'
                             for t, _ in reversed(item.points))
        upper = _path(frame, item.points)
        parts.append(f'<polygon points="{upper} {lower}" fill="{item.colour}" class="area"/>')
        lower = _path(frame, list(reversed(item.points)))
    return parts


def _drawn(frame: _Frame, series: Series) -> str:
    points = [(t, value) for t, value in series.points if math.isfinite(value)]
    if series.kind == 'dots':
        return ''.join(f'<circle cx="{frame.x(t):.1f}" cy="{frame.y(value):.1f}" r="1.8" '
                       f'fill="{series.colour}"/>' for t, value in points)
    return (f'<polyline points="{_path(frame, points)}" class="line {series.kind}" '
            f'stroke="{series.colour}"/>')


def _marks(frame: _Frame, marks: Sequence[Mark], width: float) -> list[str]:
    """Draw vertical lines; texts that would touch the one before are left to the page."""
    parts, free_from = [], 0.0
    for mark in sorted(marks, key=lambda item: item.time_s):
        x = frame.x(mark.time_s)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top - 8}" '
                     f'y2="{frame.bottom}"/>')
        half = 3.8 * len(mark.text)
        middle = min(max(x, frame.left + half), width - 4 - half)
        if middle - half >= free_from:
            parts.append(f'<text class="marked" x="{middle:.1f}" y="{frame.top - 13}" '
                         f'text-anchor="middle">{escape(mark.text)}</text>')
            free_from = middle + half + 6
    return parts


def _path(frame: _Frame, points: Points) -> str:
    return ' '.join(f'{frame.x(t):.1f},{frame.y(value):.1f}' for t, value in points)
