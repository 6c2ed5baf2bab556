# SPDX-License-Identifier: Apache-2.0
"""The page about a flight: one HTML file without anything else."""

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from blabberseg_ros.atomic import write_text
from blabberseg_ros.demo import page_charts, page_map, pictures
from blabberseg_ros.demo.recording import Flight, Moment
from blabberseg_ros.demo.report import (
    COUNTERS,
    Outcome,
    figure,
    latencies,
    percentiles,
    versions,
)

MOMENTS = 24
STAGE_NAMES = {'encode_text': 'Text encoder', 'encode_image': 'Image encoder',
               'decode': 'Decoder, all prompts', 'fuse': 'Fusion', 'threshold': 'Threshold search',
               'total': 'All of it in the node', 'round_trip': 'Request to answer, as the pilot '
               'sees it over ROS'}


def write_page(outcome: Outcome, path: Path) -> None:
    """Write the page."""
    write_text(path, page(outcome))


def page(outcome: Outcome) -> str:
    """Return the page as HTML."""
    flight = outcome.flight
    moments = key_moments(flight)
    style, script = (resources.files(__package__).joinpath(name).read_text(encoding='utf-8')
                     for name in ('page.css', 'page.js'))
    return '\n'.join([
        '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{escape(outcome.headline)}</title>', f'<style>{style}</style>', '</head>',
        '<body>', _header(outcome), '<main>', _views(flight, moments),
        page_map.section(outcome), page_charts.section(outcome), _latency_table(flight),
        _prompts(flight), _details(outcome), '</main>', _footer(),
        f'<script>{script}</script>', '</body>', '</html>', ''])


def key_moments(flight: Flight, count: int = MOMENTS) -> list[Moment]:
    """Return moments spread over the flight, with those right after each event among them."""
    moments = flight.moments
    if len(moments) <= count:
        return list(moments)
    wanted = {next((index for index, moment in enumerate(moments)
                    if moment.time_s >= event.time_s), len(moments) - 1)
              for event in flight.events if event.kind in ('prompts', 'touchdown')}
    wanted |= {0, len(moments) - 1}
    spread = [round(index * (len(moments) - 1) / (count - 1)) for index in range(count)]
    # Those closest to a wanted one make room for it.
    for index in wanted:
        nearest = min(spread, key=lambda other: abs(other - index))
        spread[spread.index(nearest)] = index
    return [moments[index] for index in sorted(set(spread))]


def _header(outcome: Outcome) -> str:
    flight, score, setting = outcome.flight, outcome.score, outcome.setting
    if score is not None:
        kind, word = ('safe', 'safe') if score.safe else ('unsafe', 'not safe')
        title = f'Landed on {escape(score.landed_on)}: <span class="{kind}">{word}</span>'
    else:
        title = '<span class="open">Did not land</span>'
    world = ' '.join([f'world {setting.seed}', *outcome.family.split('_')])
    return (f'<header><p class="kicker">blabberseg_ros demonstration, {escape(world.strip())}</p>'
            f'<h1>{title}</h1>'
            f'<p class="lead">{_story(outcome)}</p>{_figures(flight)}</header>')


def _story(outcome: Outcome) -> str:
    flight, change = outcome.flight, outcome.flight.prompt_change
    height = f'{outcome.setting.height_m:.0f} m'
    if flight.touchdown_m is not None:
        text = (f'A simulated drone came down from {height} in {flight.duration_s:.0f} s. It saw '
                'the ground through a camera and asked a ROS 2 node where it is safe.')
    else:
        reason = (flight.problem or 'the flight was ended').partition('\n')[0]
        text = (f'A simulated drone looked for safe ground from {height} and did not touch down: '
                f'{escape(reason)}.')
    if change is not None and change.success:
        what = escape(change.after.negative[-1].partition(',')[0])
        text += (f' On the way down its target, ground like <q>{what}</q>, was declared unsafe by '
                 'changing the prompts')
        if change.first_mask_ms is not None:
            text += f'; the first mask to obey came {change.first_mask_ms:.0f} ms later'
        text += '.'
    return text


def _figures(flight: Flight) -> str:
    change = flight.prompt_change
    trip = percentiles([answer.round_trip_ms for answer in flight.answers])
    rate = len(flight.answers) / max(flight.duration_s, 1e-3)
    delay_ms = change.first_mask_ms if change is not None else None
    rows = [('Flight', flight.duration_s, 1, 's'), ('Heatmaps per second', rate, 1, ''),
            ('Request to answer, p50', trip['p50'], 0, 'ms'),
            ('Request to answer, p99', trip['p99'], 0, 'ms'),
            ('Prompt change to first mask', delay_ms, 0, 'ms'),
            ('Requests without an answer', float(flight.requests_lost), 0, '')]
    cells = ''.join(
        f'<div><dt>{name}</dt><dd>{_number(value, digits)}'
        f'{f" <small>{unit}</small>" if unit and value is not None else ""}</dd></div>'
        for name, value, digits, unit in rows)
    return f'<dl class="figures">{cells}</dl>'


def _views(flight: Flight, moments: Sequence[Moment]) -> str:
    head = ('<section id="views"><h2>What it saw</h2><p class="soft">Camera, probability of safe '
            'ground, and the mask of what is above the threshold.</p>')
    if not moments:
        return head + '<p>No heatmap came back, so there is nothing to show.</p></section>'
    height_px, width_px = moments[0].rgb.shape[:2]
    start = _first_to_show(flight, moments)
    shown = _moment(moments[start], flight)
    data = json.dumps([_moment(moment, flight) for moment in moments]).replace('</', '<\\/')
    panels = [
        ('', 'Camera', f'<img id="camera" alt="camera frame" src="{shown["camera"]}">', ''),
        ('', 'Probability of safe ground', '<img id="probability" alt="probability map" '
         f'src="{shown["probability"]}">', ''),
        ('overlay', 'Mask: green is safe, red is not', '<img id="under" alt="camera frame" '
         f'src="{shown["camera"]}"><img id="mask" alt="mask" src="{shown["mask"]}">', '')]
    figures = ''.join(
        f'<figure class="{name}"><span class="picture" style="--aspect:{width_px}/{height_px}">'
        f'{images}</span><figcaption>{caption}</figcaption>{below}</figure>'
        for name, caption, images, below in panels)
    labels = (('time', 'Time'), ('height', 'Height'), ('threshold', 'Threshold'),
              ('share', 'Safe in view'), ('phase', 'Pilot'), ('asked', 'Prompts'))
    state = ''.join(f'<li><span class="soft">{label}</span> <b id="s-{name}">'
                    f'{escape(str(shown[name]))}</b></li>' for name, label in labels)
    return (f'{head}<div class="views">{figures}</div>'
            '<div class="scale" role="img" aria-label="colour scale of the probability, 0 to 1, '
            'with the threshold"><i id="cut"></i><span>probability 0</span><span>1</span></div>'
            '<div class="player"><button id="play" type="button">Play</button><div class="track">'
            f'<input id="slider" type="range" min="0" max="{len(moments) - 1}" value="{start}" '
            f'step="1" aria-label="moment of the flight"></div></div>'
            f'<ul class="state">{state}</ul>'
            f'<script type="application/json" id="moments">{data}</script></section>')


def _first_to_show(flight: Flight, moments: Sequence[Moment]) -> int:
    """Return the moment that tells most at first sight: just after the prompts changed."""
    changed_s = next((event.time_s for event in flight.events if event.kind == 'prompts'), None)
    if changed_s is None:
        return len(moments) // 3
    return next((index for index, moment in enumerate(moments) if moment.time_s >= changed_s),
                len(moments) - 1)


def _moment(moment: Moment, flight: Flight) -> dict[str, object]:
    changed_s = next((event.time_s for event in flight.events if event.kind == 'prompts'),
                     math.inf)
    known = math.isfinite(moment.threshold)
    return {
        'camera': pictures.photo(moment.rgb), 'probability': pictures.heat(moment.probability),
        'mask': pictures.veil(moment.mask), 'time': f'{moment.time_s:.1f} s',
        'height': f'{moment.view.height_m:.1f} m',
        'threshold': f'{moment.threshold:.2f}' if known else '–',
        'cut': round(min(max(moment.threshold, 0.0), 1.0), 3) if known else None,
        'share': f'{(moment.mask > 0).mean():.0%}', 'phase': moment.phase,
        'asked': 'changed' if moment.time_s >= changed_s else 'first set'}


def _latency_table(flight: Flight) -> str:
    rows = ''.join(
        f'<tr><td>{STAGE_NAMES[stage]}</td><td class="number">{_number(row["p50"])}</td>'
        f'<td class="number">{_number(row["p99"])}</td></tr>'
        for stage, row in latencies(flight).items())
    return ('<section id="latency"><h2>Latency</h2><table><thead><tr><th>Stage</th>'
            '<th class="number">p50 in ms</th><th class="number">p99 in ms</th></tr></thead>'
            f'<tbody>{rows}</tbody></table><p class="hint">Stages as the node reports them on '
            '<code>/diagnostics</code>, over its last 256 answers; '
            '0 is a stage that had nothing to do.</p></section>')


def _prompts(flight: Flight) -> str:
    change, prompts = flight.prompt_change, flight.prompts
    head = '<section id="prompts"><h2>What it was asked for</h2>'
    if prompts is None:
        return head + '<p>The prompts were never read.</p></section>'
    before = dict.fromkeys(prompts.positive, True) | dict.fromkeys(prompts.negative, False)
    changed = change is not None and change.success
    after = before
    if change is not None and changed:
        after = (dict.fromkeys(change.after.positive, True)
                 | dict.fromkeys(change.after.negative, False))
    rows = ''.join(
        f'<tr{"" if safe == after.get(prompt) else " class=moved"}><td>{escape(prompt)}</td>'
        f'<td>{_side(safe)}</td><td>{_side(after.get(prompt)) if changed else "–"}</td></tr>'
        for prompt, safe in before.items())
    text = f'Each prompt stands in the sentence <q>{escape(prompts.template)}</q>.'
    if change is not None and changed:
        text += (f' The change took {change.service_ms:.0f} ms as a service call, '
                 f'{change.encode_ms:.0f} ms of it for encoding text: prompts that are known '
                 'already cost nothing.')
    return (f'{head}<p class="soft">{text}</p><table><thead><tr><th>Prompt</th><th>First</th>'
            f'<th>After the change</th></tr></thead><tbody>{rows}</tbody></table></section>')


def _side(safe: bool | None) -> str:
    if safe is None:
        return '–'
    return '<span class="safe">safe</span>' if safe else '<span class="unsafe">unsafe</span>'


def _details(outcome: Outcome) -> str:
    flight = outcome.flight
    last = flight.diagnoses[-1] if flight.diagnoses else None
    counters = {name: figure(last, name) for name in COUNTERS}
    engine = last.values.get('engine', '') if last is not None else ''
    precision = last.values.get('precision', '') if last is not None else ''
    bundle = last.values.get('bundle', '') if last is not None else ''
    used = {'Model': bundle, 'Engine': f'{engine} {precision}'.strip(), **versions()}
    return ('<section id="details"><h2>Work saved, and what it ran on</h2><div class="pair">'
            + _table('Counted by the node', {
                name.replace('_', ' '): _number(value, 0) for name, value in counters.items()})
            + _table('Versions', used) + '</div></section>')


def _table(title: str, rows: dict[str, str]) -> str:
    body = ''.join(f'<tr><td>{escape(name)}</td><td class="number">{escape(value) or "–"}</td>'
                   '</tr>' for name, value in rows.items())
    return f'<div><table><thead><tr><th colspan="2">{title}</th></tr></thead><tbody>{body}' \
           '</tbody></table></div>'


def _footer() -> str:
    return ('<footer><p><strong>A demonstration in a simulated world, never for flight.</strong> '
            'Everything on this page came back over ROS during the flight. The world’s label map '
            'was read once, after touchdown, to tell what lies under the drone.</p></footer>')


def _number(value: float | None, digits: int = 1) -> str:
    return '–' if value is None else f'{value:.{digits}f}'
