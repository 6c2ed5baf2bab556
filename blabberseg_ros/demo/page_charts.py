# SPDX-License-Identifier: Apache-2.0
"""The page's charts: latency per stage, threshold, altitude."""

from dataclasses import replace

from blabberseg_ros.demo.charts import Chart, Mark, Series, draw
from blabberseg_ros.demo.recording import Flight
from blabberseg_ros.demo.report import STAGES, Outcome, figure

_COLOURS = {'encode_text': 'var(--c-text)', 'encode_image': 'var(--c-image)',
            'decode': 'var(--c-decode)', 'fuse': 'var(--c-fuse)',
            'threshold': 'var(--c-threshold)'}
_NAMES = {'encode_text': 'text encoder', 'encode_image': 'image encoder', 'decode': 'decoder',
          'fuse': 'fusion', 'threshold': 'threshold search'}
_MARK_TEXTS = {'prompts': 'prompts changed', 'touchdown': 'touchdown'}
# A few late answers must not flatten everything else.
_HEADROOM = 1.5


def section(outcome: Outcome) -> str:
    """Return all charts."""
    flight, floor = outcome.flight, outcome.setting.min_threshold
    charts = (
        ('Latency per stage', 'p50 of each stage as the node reports it, one on top of the other; '
         'each dot is one answer as the pilot received it.', _latency(flight)),
        ('Threshold', 'The probability above which ground counts as safe. The node lowers it from '
         f'0.8 until there is room to land in view, but never below {floor:g}.',
         _threshold(flight, floor)),
        ('Altitude', 'Above the ground at the start.', _altitude(flight)))
    body = ''.join(f'<div class="chart"><h3>{title}</h3><p class="hint">{text}</p>{draw(chart)}'
                   '</div>' for title, text, chart in charts)
    return f'<section id="charts"><h2>The flight over time</h2>{body}</section>'


def _marks(flight: Flight) -> list[Mark]:
    return [Mark(event.time_s, _MARK_TEXTS[event.kind]) for event in flight.events
            if event.kind in _MARK_TEXTS]


def _latency(flight: Flight) -> Chart:
    stages = [Series(_NAMES[stage], _figures(flight, f'{stage}_p50_ms'), _COLOURS[stage], 'area')
              for stage in STAGES]
    slowest = Series('p99 of all stages together', _figures(flight, 'total_p99_ms'),
                     'var(--ink)', 'dashed')
    trips = Series('request to answer', [(answer.time_s, answer.round_trip_ms)
                                         for answer in flight.answers], 'var(--c-trip)', 'dots')
    usual = [value for _, value in slowest.points] + sorted(
        value for _, value in trips.points)[:max(1, len(trips.points) // 2)]
    highest = max([value for _, value in (*slowest.points, *trips.points)], default=1.0)
    top = min(highest, _HEADROOM * max(usual, default=highest))
    late = sum(value > top for _, value in trips.points)
    if late:
        trips = replace(trips, name=f'{trips.name} ({late} above {top:.0f} ms not shown)', points=[
            point for point in trips.points if point[1] <= top])
    return Chart('Latency per stage in milliseconds over time', 'ms', [*stages, slowest, trips],
                 _marks(flight), flight.duration_s, top)


def _threshold(flight: Flight, floor: float) -> Chart:
    found = [(answer.time_s, answer.threshold) for answer in flight.answers if answer.success]
    failed = [(answer.time_s, answer.threshold) for answer in flight.answers
              if not answer.success]
    series = [Series('threshold found', found, 'var(--c-line)')]
    if failed:
        series.append(Series('no safe ground found', failed, 'var(--unsafe)', 'dots'))
    return Chart('Threshold over time', 'probability', series, _marks(flight),
                 flight.duration_s, 1.0, [(floor, f'floor {floor:g}')])


def _altitude(flight: Flight) -> Chart:
    heights = [(fix.time_s, fix.position_m[2]) for fix in flight.track[::4]]
    return Chart('Altitude in metres over time', 'm',
                 [Series('altitude', heights, 'var(--c-line)')], _marks(flight),
                 flight.duration_s)


def _figures(flight: Flight, name: str) -> list[tuple[float, float]]:
    return [(diagnosis.time_s, value) for diagnosis in flight.diagnoses
            if (value := figure(diagnosis, name)) is not None]
