# SPDX-License-Identifier: Apache-2.0
"""The page's map of the flight, over a mosaic of the camera's own frames."""

from html import escape

from blabberseg_ros.demo import pictures
from blabberseg_ros.demo.charts import nice_step
from blabberseg_ros.demo.mosaic import Mosaic, mosaic
from blabberseg_ros.demo.recording import Position
from blabberseg_ros.demo.report import Outcome

_MAX_TILES = 40
# Numbers closer than this share of the map's width are pushed apart.
_APART = 0.045


def section(outcome: Outcome) -> str:
    """Return the map with its numbered places."""
    flight = outcome.flight
    head = ('<section id="map"><h2>Where it flew</h2><p class="soft">Seen from above, put '
            'together from the camera frames. North is up.</p>')
    stride = max(1, len(flight.moments) // _MAX_TILES)
    ground = mosaic(flight.moments[::stride])
    if ground is None or not flight.track:
        return head + '<p>No frames came back, so there is no map.</p></section>'
    places = _places(outcome)
    pins = _apart([ground.share(*position[:2]) for position, _ in places])
    marks = ''.join(f'<span class="pin" style="left:{x:.2%};top:{y:.2%}">{number}</span>'
                    for number, (x, y) in enumerate(pins, 1))
    entries = ''.join(f'<li><span class="pin">{number}</span><span>{text}</span></li>'
                      for number, (_, text) in enumerate(places, 1))
    height_px, width_px = ground.rgba.shape[:2]
    path = ' '.join('{:.1f},{:.1f}'.format(*_pixel(ground, fix.position_m))
                    for fix in flight.track[::4] + flight.track[-1:])
    lines = ''.join(f'<polyline points="{path}" stroke="var(--{colour})" stroke-width="{width}"/>'
                    for colour, width in (('casing', 6), ('path', 3)))
    return (f'{head}<div class="map"><div class="ground"><img alt="ground seen from above" '
            f'src="{pictures.ground(ground.rgba)}" width="{width_px}" height="{height_px}">'
            f'<svg viewBox="0 0 {width_px} {height_px}" role="img" aria-label="path of the '
            f'flight">{lines}</svg>{marks}{_bar(ground)}<span class="north">N ↑</span></div>'
            f'<ol class="events">{entries}</ol></div></section>')


def _places(outcome: Outcome) -> list[tuple[Position, str]]:
    flight, score = outcome.flight, outcome.score
    start = flight.track[0].position_m
    places = [(start, f'Start at {start[2]:.0f} m')]
    for event in flight.events:
        when = f'{event.time_s:.1f} s, at {event.position_m[2]:.0f} m'
        if event.kind == 'prompts':
            text = f'Prompts changed after {when}; {escape(event.text)}'
            then = next((later for later in flight.events if later.kind == 'replan'
                         and later.time_s >= event.time_s), None)
            if then is not None:
                text += f'. Then a {escape(then.text)}'
            places.append((event.position_m, text))
        elif event.kind == 'touchdown':
            ground = f' on {escape(score.landed_on)}' if score is not None else ''
            places.append((event.position_m, f'Touchdown{ground} after {event.time_s:.1f} s'))
    if flight.touchdown_m is None:
        last = flight.track[-1].position_m
        places.append((last, f'End of the flight at {last[2]:.0f} m, not landed'))
    return places


def _pixel(ground: Mosaic, position_m: Position) -> tuple[float, float]:
    x, y = ground.share(position_m[0], position_m[1])
    return x * ground.rgba.shape[1], y * ground.rgba.shape[0]


def _apart(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points moved just so far that none covers another."""
    placed: list[tuple[float, float]] = []
    for x, y in points:
        while any(abs(x - a) < _APART and abs(y - b) < _APART for a, b in placed):
            x += _APART
        placed.append((x, y))
    return placed


def _bar(ground: Mosaic) -> str:
    """Return a scale bar of a round length, about a fifth of the map."""
    width_m = ground.rgba.shape[1] * ground.pixel_m
    length_m = nice_step(width_m, 6)
    return f'<span class="bar" style="width:calc({length_m / width_m:.2%} + 16px)">' \
           f'{length_m:g} m<i></i></span>'
