# SPDX-License-Identifier: Apache-2.0
"""Measurements as data: one CSV row for each engine, scenario, prompt count and image size."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from blabberseg_ros.atomic import write_text
from blabberseg_ros.errors import ParameterError

# The baseline that ratios refer to: DOVESEI as it is, in fp32, answering a new frame.
BASELINE, BASELINE_PRECISION = 'dovesei', 'fp32'
NEW_FRAME, SAME_FRAME, NEW_PROMPTS = 'new frame', 'same frame, other prompts', 'new prompts'
STAGE, START, BATCH = 'stage', 'start', 'batch'
WHOLE_ANSWERS = (NEW_FRAME, SAME_FRAME, NEW_PROMPTS, BATCH)


@dataclass(frozen=True)
class Times:
    """Percentiles of wall-clock times in milliseconds, and how many there were."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> 'Times':
        """Summarise measurements, at least one."""
        p50, p90, p99 = (round(float(value), 4)
                         for value in np.percentile(times_ms, (50, 90, 99)))
        return cls(len(times_ms), p50, p90, p99)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        device: name of the GPU or CPU that ran it.
        engine: ours by its name, or a baseline.
        precision: of the image path.
        scenario: what was asked; see the constants of this module.
        detail: stage or phase, where the scenario has several.
        prompts: number of prompts.
        input: width and height of the frame in pixels, `640x480`.
        n: number of repetitions.
        p50_ms, p90_ms, p99_ms: wall-clock time from the host's image to the host's mask; in
            scenario `batch` per frame, from device to device.
        frames_per_s: of the median.
        ratio_to_dovesei: how many times faster than DOVESEI in fp32 in the same run; None where
            that was not measured for these prompts and this input.
        max_dp, mean_dp: absolute difference of the probabilities from DOVESEI's, same frames.
        resident_mb: memory of the process after the measurement, in 1e6 bytes.
        device_mb: memory that torch holds on the GPU, in 1e6 bytes; None elsewhere.
    """

    device: str
    engine: str
    precision: str
    scenario: str
    detail: str
    prompts: int
    input: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    frames_per_s: float
    ratio_to_dovesei: float | None = None
    max_dp: float | None = None
    mean_dp: float | None = None
    resident_mb: float | None = None
    device_mb: float | None = None


@dataclass(frozen=True)
class Run:
    """Where and when rows were measured.

    Attributes:
        date: UTC, ISO 8601.
        commit: of this package's source, or `unknown`.
        threads: CPU threads that the libraries use.
        model: name of the bundle.
        versions: of Python and the libraries, `name version`, separated by semicolons.
    """

    date: str
    commit: str
    threads: int
    model: str
    versions: str


def make_row(device: str, engine: str, precision: str, scenario: str, times: Times, *,
             prompts: int, size_px: tuple[int, int], detail: str = '') -> Row:
    """Return a row without what only becomes known later."""
    return Row(device, engine, precision, scenario, detail, prompts, f'{size_px[0]}x{size_px[1]}',
               times.n, times.p50_ms, times.p90_ms, times.p99_ms,
               round(1000 / times.p50_ms, 2) if times.p50_ms else 0.0)


def with_ratios(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with their ratio to DOVESEI's answer to the same prompts and input.

    Both on the same device: a CPU is not held against a GPU. DOVESEI keeps nothing between calls,
    so its time for a new frame is its time for every frame.
    """
    rows = list(rows)
    base = {_case(row): row.p50_ms for row in rows
            if (row.engine, row.precision, row.scenario) == (
                BASELINE, BASELINE_PRECISION, NEW_FRAME)}
    return [replace(row, ratio_to_dovesei=round(base[_case(row)] / row.p50_ms, 2))
            if row.scenario in WHOLE_ANSWERS and _case(row) in base and row.p50_ms
            else row for row in rows]


def write_rows(path: Path, run: Run, rows: Iterable[Row]) -> None:
    """Write a CSV file, whole or not at all."""
    stream = io.StringIO()
    names = [field.name for field in (*fields(Run), *fields(Row))]
    writer = csv.DictWriter(stream, names, lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow({name: '' if value is None else value
                         for name, value in {**asdict(run), **asdict(row)}.items()})
    write_text(path, stream.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as texts, by column.

    Raises:
        ParameterError: it cannot be read, or is not a file of `blabberseg bench`.
    """
    try:
        with open(path, newline='', encoding='utf-8') as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f'the results {path} cannot be read: {error}') from error
    needed = {field.name for field in (*fields(Run), *fields(Row))}
    if not rows or not needed <= set(rows[0]):
        raise ParameterError(f'{path} holds no results of `blabberseg bench`')
    return rows


def _case(row: Row) -> tuple[str, int, str]:
    return row.device, row.prompts, row.input
