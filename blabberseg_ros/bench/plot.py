# SPDX-License-Identifier: Apache-2.0
"""A picture of a result file: time for one answer, on a logarithmic axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from blabberseg_ros.atomic import write_text
from blabberseg_ros.bench.jobs import DOVESEI, MAIN_PROMPTS, MAIN_SIZE_PX, ORIGINAL
from blabberseg_ros.bench.records import BATCH, NEW_FRAME, NEW_PROMPTS, SAME_FRAME, read_rows

_SCENARIOS = (NEW_FRAME, NEW_PROMPTS, SAME_FRAME, BATCH)
_WIDTH, _LABEL, _RIGHT, _TOP, _STEP, _BAR = 960, 400, 170, 66, 30, 18
# Readable on light and on dark pages alike.
_TEXT, _QUIET, _GRID = '#6e7781', '#8b949e', '#8b949e55'
_OURS, _THEIRS = '#1f8f5f', '#b5651d'


@dataclass(frozen=True)
class Bar:
    """One answer: who gave it, how long it took, and how that compares with DOVESEI."""

    label: str
    time_ms: float
    note: str
    ours: bool


def write_plot(path: Path) -> Path:
    """Draw a CSV file of `blabberseg bench` as an SVG file beside it.

    Raises:
        ParameterError: it is not such a file.
    """
    rows = read_rows(path)
    bars = bars_of(rows)
    devices = ', '.join(dict.fromkeys(row['device'] for row in rows))
    title = f'One answer for {MAIN_PROMPTS} prompts at {MAIN_SIZE_PX[0]}x{MAIN_SIZE_PX[1]}, p50'
    target = path.with_suffix('.svg')
    write_text(target, draw(title, f'{devices}, {rows[0]["date"][:10]}', bars))
    return target


def bars_of(rows: Sequence[dict[str, str]]) -> list[Bar]:
    """Return the bars for the main case, slowest first."""
    size = f'{MAIN_SIZE_PX[0]}x{MAIN_SIZE_PX[1]}'
    bars = []
    for row in rows:
        if (row['scenario'] not in _SCENARIOS or row['prompts'] != str(MAIN_PROMPTS)
                or row['input'] != size):
            continue
        theirs = row['engine'] in (DOVESEI, ORIGINAL)
        what = '' if theirs else f', {row["scenario"]}'
        label = f'{row["engine"]} {row["precision"]}{what}'
        ratio = row['ratio_to_dovesei']
        note = f', {float(ratio):.3g}x' if ratio and row['engine'] != DOVESEI else ''
        bars.append(Bar(label, float(row['p50_ms']), note, not theirs))
    return sorted(bars, key=lambda bar: -bar.time_ms)


def draw(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """Return horizontal bars on a logarithmic axis as an SVG document."""
    times = [bar.time_ms for bar in bars if bar.time_ms > 0] or [1.0]
    low, high = math.floor(math.log10(min(times)) - 0.2), math.ceil(math.log10(max(times)))
    height = _TOP + _STEP * len(bars) + 40
    bottom = height - 32

    def x(time_ms: float) -> float:
        share = (math.log10(max(time_ms, 10.0 ** low)) - low) / max(high - low, 1)
        return _LABEL + share * (_WIDTH - _RIGHT - _LABEL)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
             f'font-family="system-ui, sans-serif" font-size="13" role="img" '
             f'aria-label="{escape(title)}">',
             f'<text x="8" y="22" font-size="16" fill="{_TEXT}">{escape(title)}</text>',
             f'<text x="8" y="42" fill="{_QUIET}">{escape(subtitle)}</text>']
    for power in range(low, high + 1):
        place = x(10.0 ** power)
        parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP - 8}" y2="{bottom}" '
                     f'stroke="{_GRID}"/><text x="{place:.1f}" y="{bottom + 18}" fill="{_QUIET}" '
                     f'text-anchor="middle">{10.0 ** power:g} ms</text>')
    for index, bar in enumerate(bars):
        top = _TOP + index * _STEP
        end = x(bar.time_ms)
        parts.append(
            f'<text x="{_LABEL - 8}" y="{top + 14}" text-anchor="end" fill="{_TEXT}">'
            f'{escape(bar.label)}</text>'
            f'<rect x="{_LABEL}" y="{top}" width="{max(end - _LABEL, 1):.1f}" height="{_BAR}" '
            f'rx="2" fill="{_OURS if bar.ours else _THEIRS}"/>'
            f'<text x="{end + 6:.1f}" y="{top + 14}" fill="{_TEXT}">{_rounded(bar.time_ms)} ms'
            f'{escape(bar.note)}</text>')
    return '\n'.join([*parts, '</svg>']) + '\n'


def _rounded(time_ms: float) -> str:
    """Return three digits, or all of those before the point: 0.984, 97.2, 9578."""
    return f'{time_ms:.0f}' if time_ms >= 1000 else f'{time_ms:.3g}'
