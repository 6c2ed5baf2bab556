# SPDX-License-Identifier: Apache-2.0
"""One job, measured in a process of its own: `python -m blabberseg_ros.bench.measure JOB`.

A process of its own gives each engine its own threads and memory, and an honest start-up time.
Rows go to standard output as JSON lines; the answers of the first frames go to a file, so that
engines can be compared.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from blabberseg_ros.bench import records
from blabberseg_ros.bench.jobs import (
    BATCHED,
    DOVESEI,
    MAIN_PROMPTS,
    MAIN_SIZE_PX,
    OURS,
    Case,
    Job,
    prompt_sets,
    unseen_prompts,
)
from blabberseg_ros.bench.machine import device_name, memory_mb
from blabberseg_ros.bench.records import Row, Times, make_row
from blabberseg_ros.bench.timing import repeat
from blabberseg_ros.errors import BlabbersegError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.prompts import PromptSet

# More than the segmenter remembers, so that every frame is a new one.
_FRAMES = 8
_COMPARED = 2


def measure(job: Job) -> Iterator[Row]:
    """Run a job.

    Raises:
        BlabbersegError: the engine or the model cannot be used.
    """
    if job.contestant == OURS:
        yield from _measure_ours(job)
    elif job.contestant == BATCHED:
        yield from _measure_batched(job)
    else:
        yield from _measure_baseline(job)


def _measure_ours(job: Job) -> Iterator[Row]:
    from blabberseg_ros.backends.registry import backend_class
    from blabberseg_ros.bundle import load_bundle
    from blabberseg_ros.parity.variants import kind_of
    from blabberseg_ros.segmenter import Segmenter

    case = job.cases[0]
    made = time.time()
    image = moving_frames(1, case.size_px)[0]
    started_at = job.started_at + time.time() - made  # the camera's work, not ours
    bundle = load_bundle(Path(job.bundle))
    kind = kind_of(job.engine, job.precision, bundle)
    segmenter = Segmenter(backend_class(bundle.manifest.family)(bundle, kind),
                          cache_dir=Path(job.cache))
    segmenter.activate()
    row = _row_maker(kind.device, kind.name, segmenter.precision)
    loaded_ms = (time.time() - started_at) * 1e3
    segmenter.segment(image, prompt_sets(case.prompts)[0])
    answered_ms = (time.time() - started_at) * 1e3
    cache = 'warm' if job.start_only else 'cold'
    yield row(records.START, [loaded_ms], case, f'loaded, {cache} cache')
    yield row(records.START, [answered_ms], case, f'first answer, {cache} cache')
    if job.start_only:
        return
    answers = {}
    for case in job.cases:
        yield from _time_case(segmenter, row, case, job)
        for index, image in enumerate(moving_frames(_COMPARED, case.size_px)):
            heatmap = segmenter.segment(image, prompt_sets(case.prompts)[0])
            answers[_key(case, index)] = heatmap.probability
    _save(job, kind.name, segmenter.precision, answers)


def _time_case(segmenter: Any, row: Callable[..., Row], case: Case, job: Job) -> Iterator[Row]:
    """Measure one number of prompts and one size of frame."""
    frames = moving_frames(_FRAMES, case.size_px)
    first, second = prompt_sets(case.prompts)
    for prompts in (first, second):
        segmenter.encode(prompts)

    def ask(image: np.ndarray, prompts: PromptSet) -> None:
        segmenter.segment(image, prompts, with_probability=False)

    limits = job.limits
    yield row(records.NEW_FRAME, repeat(lambda i: ask(frames[i % _FRAMES], first), limits), case)
    yield row(records.SAME_FRAME,
              repeat(lambda i: ask(frames[0], (first, second)[i % 2]), limits), case)
    if case == Case(MAIN_PROMPTS, MAIN_SIZE_PX):
        yield row(records.NEW_PROMPTS, repeat(
            lambda i: ask(frames[i % _FRAMES], unseen_prompts(case.prompts, i)), limits), case)
    yield from _time_stages(segmenter.backend, frames, first, row, case, job)


def _time_stages(backend: Any, frames: Sequence[np.ndarray], prompts: PromptSet,
                 row: Callable[..., Row], case: Case, job: Job) -> Iterator[Row]:
    """Measure the stages one by one, waiting for the device after each."""
    from blabberseg_ros.backends.values import Query

    wait = _waiter(backend.kind.device)
    codes = backend.encode_prompts(prompts.texts)
    query = Query(prompts.is_positive, FusionOptions(), (case.size_px[1], case.size_px[0]), False)
    times: dict[str, list[float]] = {
        name: [] for name in ('encode image', 'decode', 'fuse', 'threshold')}

    def once(index: int) -> None:
        started = time.perf_counter()
        code = backend.encode_image(frames[index % _FRAMES])
        wait()
        times['encode image'].append((time.perf_counter() - started) * 1e3)
        answer = backend.answer(code, codes, query)
        for name in ('decode', 'fuse', 'threshold'):
            times[name].append(getattr(answer, f'{name}_ms'))

    count = len(repeat(once, job.limits))
    for name, values in times.items():
        if any(values):
            # Devices that answer at once report all of it as decoding.
            whole = name == 'decode' and not any(times['threshold'])
            yield row(records.STAGE, values[-count:], case, 'answer' if whole else name)
    if case.size_px == MAIN_SIZE_PX:
        encode = repeat(lambda _: (backend.encode_prompts(prompts.texts), wait()), job.limits)
        yield row(records.STAGE, encode, case, 'encode text')


def _measure_baseline(job: Job) -> Iterator[Row]:
    from blabberseg_ros.bench.baselines import Baseline, BlabbersegOriginal, Dovesei
    from blabberseg_ros.bundle import load_bundle

    bundle = load_bundle(Path(job.bundle))
    kind = Dovesei if job.contestant == DOVESEI else BlabbersegOriginal
    baseline: Baseline = kind(bundle, job.device, job.precision)
    row = _row_maker(job.device, job.contestant, job.precision)
    # Its own warm-up: on a CPU thirteen prompts take a quarter of a minute, so two have to do.
    limits = job.limits if job.device == 'cuda' else replace(job.limits, warm_up=0)
    answers = {}
    for case in job.cases:
        frames = moving_frames(_FRAMES, case.size_px)
        prompts = prompt_sets(case.prompts)[0]
        baseline.answer(frames[0], prompts if job.device == 'cuda' else prompt_sets(2)[0])

        def ask(index: int, case: Case = case, frames: Sequence[np.ndarray] = frames,
                prompts: PromptSet = prompts) -> None:
            answer = baseline.answer(frames[index % _FRAMES], prompts)
            if index < _COMPARED:
                answers[_key(case, index)] = answer.probability

        yield row(records.NEW_FRAME, repeat(ask, limits), case)
    _save(job, job.contestant, job.precision, answers)


def _measure_batched(job: Job) -> Iterator[Row]:
    import torch

    from blabberseg_ros.backends.clipseg import ClipSegBackend
    from blabberseg_ros.bundle import load_bundle
    from blabberseg_ros.engines import torch_batched
    from blabberseg_ros.parity.variants import kind_of

    bundle = load_bundle(Path(job.bundle))
    backend = ClipSegBackend(bundle, kind_of(job.engine, job.precision, bundle))
    answers: dict[str, np.ndarray] = {}
    row = _row_maker('cuda', job.engine, job.precision)
    for case in job.cases:
        prompts = prompt_sets(case.prompts)[0]
        codes = tuple(backend.encode_prompts(prompts.texts))
        backend.deactivate()
        width, height = case.size_px
        batched = torch_batched.BatchedClipSeg(bundle, torch_batched.Job(
            codes, prompts.is_positive, FusionOptions(), (height, width), job.batch),
            job.precision)
        few = torch.from_numpy(np.stack(moving_frames(_FRAMES, case.size_px))).cuda()
        frames = few.repeat(-(-job.batch // _FRAMES), 1, 1, 1)[:job.batch].contiguous()

        def ask(_: int, batched: Any = batched, frames: Any = frames) -> None:
            batched.segment(frames)
            torch.cuda.synchronize()

        times = [value / job.batch for value in repeat(ask, job.limits)]
        yield row(records.BATCH, times, case, f'{job.batch} frames at once')
        probability = batched.segment(frames).probability[:_COMPARED].cpu().numpy()
        answers |= {_key(case, index): probability[index] for index in range(len(probability))}
    _save(job, f'{job.engine}-batched', job.precision, answers)


def _row_maker(device: str, engine: str, precision: str) -> Callable[..., Row]:
    name = device_name(device)

    def row(scenario: str, times_ms: Sequence[float], case: Case, detail: str = '') -> Row:
        made = make_row(name, engine, precision, scenario, Times.of(times_ms),
                        prompts=case.prompts, size_px=case.size_px, detail=detail)
        return replace(made, resident_mb=memory_mb('VmRSS'), device_mb=_device_mb())
    return row


def _waiter(device: str) -> Callable[[], object]:
    """Return a function that waits until the device has done everything."""
    if device == 'cuda' and 'torch' in sys.modules:
        import torch

        return torch.cuda.synchronize
    return lambda: None


def _device_mb() -> float | None:
    torch = sys.modules.get('torch')
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_reserved() / 1e6, 1)


def _key(case: Case, index: int) -> str:
    return f'{case.prompts} {case.size_px[0]}x{case.size_px[1]} {index}'


def _save(job: Job, engine: str, precision: str, answers: dict[str, Any]) -> None:
    np.savez(Path(job.folder) / f'{engine} {precision}.npz', **answers)


def main() -> int:
    """Run the job of the command line; the exit code is 2 if it was refused."""
    job = Job.from_json(sys.argv[1])
    try:
        for row in measure(job):
            print(json.dumps(asdict(row)), flush=True)
    except BlabbersegError as error:
        print(str(error), file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
