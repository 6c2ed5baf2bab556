# SPDX-License-Identifier: Apache-2.0
"""The flight in figures: report.json."""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import blabberseg_ros
from blabberseg_ros.atomic import write_text
from blabberseg_ros.demo.recording import Diagnosis, Flight
from blabberseg_ros.demo.scoring import Score

# Stages in the order in which a frame goes through them.
STAGES = ('encode_text', 'encode_image', 'decode', 'fuse', 'threshold')
COUNTERS = ('image_cache_hits', 'prompt_cache_hits', 'prompts_encoded', 'image_encoder_runs',
            'text_encoder_runs', 'decoder_runs', 'requests_answered', 'requests_refused',
            'frames_answered', 'frames_refused', 'frames_dropped')
_PACKAGES = ('numpy', 'onnxruntime', 'onnxruntime-gpu', 'opencv-python-headless', 'tokenizers',
             'ros-rclpy', 'ros-rmw-fastrtps-cpp')


@dataclass(frozen=True)
class Setting:
    """What the demo was asked for.

    Attributes:
        seed: of the world.
        family: of the world; empty if the seed chose it.
        bundle: name or folder of the model.
        size_px: width and height of the frames.
        world_size_m: side of the world.
        height_m: at the start.
        min_threshold: floor of the threshold. Unlike in DOVESEI there is one: without it a
            threshold is found in any image, whatever it shows.
    """

    seed: int
    family: str
    bundle: str
    size_px: tuple[int, int]
    world_size_m: float
    height_m: float
    min_threshold: float = 0.3


@dataclass(frozen=True)
class Outcome:
    """A flight, how it was meant and how it ended.

    Attributes:
        setting: what was asked for.
        flight: what was recorded.
        score: the ground under the touchdown; None without one.
        exit_codes: of the nodes' processes.
        seconds: wall-clock time per part of the demo.
    """

    setting: Setting
    flight: Flight
    score: Score | None
    exit_codes: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Return whether the flight came to its end: a landing, or its time limit."""
        return not self.flight.broken

    @property
    def family(self) -> str:
        """Return the kind of world, as far as it is known."""
        return self.setting.family or (self.score.family if self.score is not None else '')

    @property
    def headline(self) -> str:
        """Return the outcome in one sentence."""
        if self.score is not None:
            return f'Landed on {self.score.landed_on}: {"safe" if self.score.safe else "unsafe"}'
        return f'Did not land: {self.flight.problem or "the flight was ended"}'


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50 and p99, None where there are no values."""
    if not values:
        return {'p50': None, 'p99': None}
    return {f'p{percent}': round(float(np.percentile(values, percent)), 2)
            for percent in (50, 99)}


def figure(diagnosis: Diagnosis | None, name: str) -> float | None:
    """Return one figure of a diagnostics message, None where it says none."""
    try:
        value = float(diagnosis.values[name]) if diagnosis is not None else math.nan
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def report(outcome: Outcome) -> dict[str, Any]:
    """Return everything that report.json holds."""
    flight, score = outcome.flight, outcome.score
    last = _last(flight)
    return {
        'success': bool(score is not None and score.safe),
        'headline': outcome.headline,
        'landed': flight.touchdown_m is not None,
        'landed_on': score.landed_on if score else None,
        'safe': score.safe if score else None,
        'ground_shares': score.shares if score else None,
        'problem': flight.problem,
        'setting': {
            'seed': outcome.setting.seed, 'family': outcome.family,
            'bundle': outcome.setting.bundle, 'size_px': list(outcome.setting.size_px),
            'height_m': outcome.setting.height_m,
            'min_threshold': outcome.setting.min_threshold},
        'flight': _flight(flight),
        'latency_ms': latencies(flight),
        'prompt_change': _prompt_change(flight),
        'cache': {name: _count(last, name) for name in COUNTERS},
        'engine': {name: last.values.get(name, '') if last is not None else ''
                   for name in ('bundle', 'engine', 'precision')},
        'events': [{'time_s': round(event.time_s, 2), 'kind': event.kind, 'text': event.text}
                   for event in flight.events],
        'exit_codes': outcome.exit_codes,
        'seconds': {name: round(value, 2) for name, value in outcome.seconds.items()},
        'versions': versions(),
    }


def write_report(outcome: Outcome, path: Path) -> None:
    """Write report.json."""
    write_text(path, json.dumps(report(outcome), indent=2, ensure_ascii=False) + '\n')


def latencies(flight: Flight) -> dict[str, dict[str, float | None]]:
    """Return p50 and p99 per stage.

    The stages and `total` are the node's own figures from its last diagnostics; `round_trip` is
    measured by the client and holds both ways over ROS as well.
    """
    last = _last(flight)
    result = {stage: {f'p{percent}': figure(last, f'{stage}_p{percent}_ms')
                      for percent in (50, 99)} for stage in (*STAGES, 'total')}
    result['round_trip'] = percentiles([answer.round_trip_ms for answer in flight.answers])
    return result


def versions() -> dict[str, str]:
    """Return what this ran on."""
    found = {'blabberseg_ros': blabberseg_ros.__version__, 'python': platform.python_version(),
             'system': platform.platform(), 'cpu_cores': str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def path_length_m(flight: Flight) -> float:
    """Return the length of the way through the air."""
    points = np.array([fix.position_m for fix in flight.track])
    if len(points) < 2:
        return 0.0
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def summary_table(outcomes: Sequence[Outcome]) -> str:
    """Return one line per flight and the share landed on safe ground, as Markdown."""
    rows = ['| seed | outcome | time (s) | way (m) | heatmaps/s | prompt change (ms) |',
            '|---|---|---|---|---|---|']
    for outcome in outcomes:
        flight, change = outcome.flight, outcome.flight.prompt_change
        delay = f'{change.first_mask_ms:.0f}' if change and change.first_mask_ms else '–'
        rate = len(flight.answers) / max(flight.duration_s, 1e-3)
        rows.append(f'| {outcome.setting.seed} | {outcome.headline} | {flight.duration_s:.1f} | '
                    f'{path_length_m(flight):.0f} | {rate:.1f} | {delay} |')
    safe = sum(outcome.score is not None and outcome.score.safe for outcome in outcomes)
    return '\n'.join([*rows, '', f'{safe} of {len(outcomes)} landed on safe ground.'])


def _flight(flight: Flight) -> dict[str, Any]:
    duration_s = max(flight.duration_s, 1e-3)
    thresholds = [answer.threshold for answer in flight.answers if answer.success]
    return {
        'duration_s': round(flight.duration_s, 2),
        'way_m': round(path_length_m(flight), 1),
        'touchdown_m': [round(value, 2) for value in flight.touchdown_m or ()],
        'frames_received': flight.frames_received,
        'frame_rate_hz': round(flight.frames_received / duration_s, 2),
        'heatmaps': len(flight.answers),
        'heatmap_rate_hz': round(len(flight.answers) / duration_s, 2),
        'heatmaps_unsuccessful': sum(not answer.success for answer in flight.answers),
        'requests_sent': flight.requests_sent,
        'requests_lost': flight.requests_lost,
        'threshold_p50': round(float(np.median(thresholds)), 3) if thresholds else None,
        'threshold_min': round(min(thresholds), 3) if thresholds else None,
    }


def _prompt_change(flight: Flight) -> dict[str, Any] | None:
    change = flight.prompt_change
    if change is None:
        return None
    first_mask_ms = change.first_mask_ms
    return {
        'success': change.success, 'message': change.message,
        'service_ms': round(change.service_ms, 1), 'encode_ms': round(change.encode_ms, 1),
        'first_mask_ms': None if first_mask_ms is None else round(first_mask_ms, 1),
        'before': {'positive': change.before.positive, 'negative': change.before.negative},
        'after': {'positive': change.after.positive, 'negative': change.after.negative},
        'template': change.after.template,
    }


def _count(diagnosis: Diagnosis | None, name: str) -> int | None:
    value = figure(diagnosis, name)
    return None if value is None else int(value)


def _last(flight: Flight) -> Diagnosis | None:
    return flight.diagnoses[-1] if flight.diagnoses else None
