# SPDX-License-Identifier: Apache-2.0
"""A whole benchmark: the jobs, one process after the other, and their rows put together."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import blabberseg_ros
from blabberseg_ros.bench.jobs import (
    BATCHED,
    DOVESEI,
    MAIN_PROMPTS,
    MAIN_SIZE_PX,
    ORIGINAL,
    OURS,
    PROMPT_COUNTS,
    SIZES_PX,
    Case,
    Job,
)
from blabberseg_ros.bench.records import (
    BASELINE,
    BASELINE_PRECISION,
    BATCH,
    WHOLE_ANSWERS,
    Row,
    with_ratios,
)
from blabberseg_ros.engines.choose import candidates
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.parity.metrics import difference
from blabberseg_ros.parity.variants import Variant

_TORCH_CUDA = 'torch-cuda'
_TAIL_CHARACTERS = 600
MAIN_CASE = Case(MAIN_PROMPTS, MAIN_SIZE_PX)


@dataclass(frozen=True)
class Plan:
    """What a benchmark shall cover.

    Attributes:
        quick: the main case alone, thirteen prompts at 640x480, and fewer repetitions.
        engines: to measure; none means all that can be used here.
        baselines: whether to measure the baselines.
        baseline_repeats: most repetitions of a baseline; None: 2 on a CPU, 20 on a GPU.
        batch: frames at once in the offline variant.
    """

    quick: bool = False
    engines: tuple[Variant, ...] = ()
    baselines: bool = True
    baseline_repeats: int | None = None
    batch: int = 64


def jobs_for(plan: Plan, bundle: str, folder: str) -> list[Job]:
    """Return the jobs of a plan on this machine: DOVESEI first, since the others refer to it.

    Args:
        plan: what is wanted.
        bundle: folder of the model.
        folder: for what the jobs leave behind.
    """
    cuda = probe_cuda().ok
    device = 'cuda' if cuda else 'cpu'
    cases = (MAIN_CASE,) if plan.quick else tuple(
        Case(prompts, size_px) for size_px in SIZES_PX
        for prompts in sorted(PROMPT_COUNTS, key=lambda count: count != MAIN_PROMPTS))
    # DOVESEI takes a quarter of a minute for thirteen prompts on two cores.
    slow_cases = cases if cuda else tuple(
        case for case in cases if case.prompts == MAIN_PROMPTS)
    repeats = plan.baseline_repeats or (20 if cuda else 2)
    ours_seconds, ours_repeats = (4.0, 300) if plan.quick else (8.0, 1000)
    jobs = []
    for contestant in (DOVESEI, ORIGINAL) if plan.baselines else ():
        for precision in ('fp32', 'fp16') if cuda else ('fp32',):
            # As many as wanted, however long that takes.
            jobs.append(Job(contestant, bundle, '', precision, device, slow_cases, 600.0, repeats,
                            folder))
    for variant in plan.engines or _usable(cuda):
        cache = str(Path(folder) / f'cache {variant.engine} {variant.precision}')
        ours = Job(OURS, bundle, variant.engine, variant.precision, '', cases, ours_seconds,
                   ours_repeats, folder, cache)
        jobs.append(ours)
        if variant.engine == _TORCH_CUDA:
            jobs.append(Job(BATCHED, bundle, variant.engine, variant.precision or 'fp16', 'cuda',
                            (MAIN_CASE,), 3.0, 50, folder, batch=plan.batch))
        jobs.append(replace(ours, start_only=True))
    return jobs


def run_jobs(jobs: Sequence[Job], report: Callable[[str], None]) -> Iterator[list[Row]]:
    """Run jobs one after the other; one that fails is reported and left out.

    Args:
        jobs: from `jobs_for`, all with the same folder.
        report: takes a line for the user.

    Yields:
        After each job that measured something, all rows so far: who stops a run keeps what it has.
    """
    rows: list[Row] = []
    for job in jobs:
        started = time.monotonic()
        done, problem = _run(job)
        rows += done
        name = f'{job.label} {job.precision}'.strip() + (
            f' {job.contestant}' if job.contestant == BATCHED else '')
        if problem:
            report(f'{name}: left out, {problem}')
        else:
            report(f'{name}: {len(done)} measurements in {time.monotonic() - started:.0f} s')
        if done:
            yield with_ratios(_with_differences(rows, Path(job.folder)))


def needs_graphs(plan: Plan) -> bool:
    """Return whether an engine of the plan runs ONNX graphs."""
    engines = [variant.engine for variant in plan.engines or _usable(probe_cuda().ok)]
    return any(engine != _TORCH_CUDA for engine in engines)


def _usable(cuda: bool) -> tuple[Variant, ...]:
    names = [candidate.kind.name for candidate in candidates() if candidate.ok]
    if cuda and _TORCH_CUDA not in names:
        names.insert(0, _TORCH_CUDA)
    return tuple(Variant(engine=name) for name in names)


def _run(job: Job) -> tuple[list[Row], str]:
    """Run one job; return its rows and what went wrong, if anything."""
    job = replace(job, started_at=time.time())
    root = str(Path(blabberseg_ros.__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    with tempfile.TemporaryFile('w+') as errors:
        child = subprocess.run(
            [sys.executable, '-m', 'blabberseg_ros.bench.measure', job.to_json()],
            stdout=subprocess.PIPE, stderr=errors, text=True, check=False,
            env={**os.environ, 'PYTHONPATH': path, **_compile_caches(job)})
        errors.seek(0)
        tail = errors.read()[-_TAIL_CHARACTERS:].strip()
    rows = [Row(**json.loads(line)) for line in child.stdout.splitlines()
            if line.startswith('{')]
    if child.returncode == 0:
        return rows, ''
    reason = f'killed by signal {-child.returncode}' if child.returncode < 0 else tail
    return rows, reason or f'exit code {child.returncode}'


def _compile_caches(job: Job) -> dict[str, str]:
    """Return where torch keeps what it compiles: a cold start finds nothing of earlier runs."""
    if not job.cache:
        return {}
    return {'TORCHINDUCTOR_CACHE_DIR': str(Path(job.cache) / 'inductor'),
            'TRITON_CACHE_DIR': str(Path(job.cache) / 'triton')}


def _with_differences(rows: Iterable[Row], folder: Path) -> list[Row]:
    """Add how far each answer is from DOVESEI's to the same frames and prompts."""
    wanted = _answers(folder / f'{BASELINE} {BASELINE_PRECISION}.npz')
    result = []
    for row in rows:
        suffix = '-batched' if row.scenario == BATCH else ''
        given = _answers(folder / f'{row.engine}{suffix} {row.precision}.npz')
        keys = [key for key in wanted
                if key.startswith(f'{row.prompts} {row.input} ') and key in given]
        if row.scenario in WHOLE_ANSWERS and keys:
            apart = [difference(wanted[key], given[key]) for key in keys]
            row = replace(row, max_dp=float(f'{max(item.max for item in apart):.3g}'),
                          mean_dp=float(f'{max(item.mean for item in apart):.3g}'))
        result.append(row)
    return result


def _answers(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path) as content:
        return dict(content)
