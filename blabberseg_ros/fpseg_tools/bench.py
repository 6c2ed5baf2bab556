# SPDX-License-Identifier: Apache-2.0
"""Speed over number of classes and prompt size: upstream's way, torch, and every engine."""

import csv
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.bench import machine
from blabberseg_ros.bench.fpseg_plain import plain_masks
from blabberseg_ros.bench.model import write_model
from blabberseg_ros.bench.records import Times
from blabberseg_ros.bench.timing import Limits, repeat
from blabberseg_ros.engines.choose import candidates
from blabberseg_ros.errors import BlabbersegError
from blabberseg_ros.fpseg_tools.devices import device_named
from blabberseg_ros.fpseg_tools.engine_network import TORCH, open_on_engine
from blabberseg_ros.fpseg_tools.networks import Preprocessor
from blabberseg_ros.fpseg_tools.progress import counter
from blabberseg_ros.fpseg_tools.settings import require, require_writable
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import ENCODERS, FpSegConfig
from blabberseg_ros.models.random_fpseg import random_fpseg

UPSTREAM = 'upstream'
NEW_FRAME, SAME_FRAME = 'new frame', 'same frame, other classes'
Step = Callable[[int], object]


@dataclass(frozen=True)
class BenchSettings:
    """What is measured.

    Attributes:
        out: CSV file to write.
        encoder: `mobilesam`, `vit_b`, `vit_l` or `vit_h`; weights are random, which changes no
            speed.
        input_size_px: side of the network's square input.
        image_size_px: width and height of the camera's image.
        n_classes: numbers of classes.
        prompt_sizes: numbers of tokens a class.
        engines: `upstream` (eager torch, each class enlarged to the image as FPSeg's own program
            does), `torch` (eager torch, merged at low resolution), and engines by name. What
            cannot be used here is left out, with its reason.
        n_warmup: runs before the clock starts; one if a run takes over a second.
        n_runs: runs that are measured.
        seconds: after which a measurement ends, with two runs at least.
        device: `cpu`, `cuda` or `auto`, for `upstream` and `torch`.
    """

    out: Path = Path('benchmarks/results/fpseg.csv')
    encoder: str = 'mobilesam'
    input_size_px: int = 1024
    image_size_px: tuple[int, int] = (2048, 1024)
    n_classes: tuple[int, ...] = (1, 3, 8, 19, 33)
    prompt_sizes: tuple[int, ...] = (16, 32, 64)
    engines: tuple[str, ...] = (UPSTREAM, TORCH, 'onnxruntime-cpu', 'torch-cuda', 'tensorrt')
    n_warmup: int = 10
    n_runs: int = 50
    seconds: float = 10.0
    device: str = 'auto'

    def __post_init__(self) -> None:
        """Refuse values that are out of bounds."""
        require(self.encoder in ENCODERS,
                f'encoder is {self.encoder!r}; it must be one of {", ".join(ENCODERS)}')
        counts = (*self.n_classes, *self.prompt_sizes, *self.image_size_px, self.n_runs)
        require(bool(self.n_classes and self.prompt_sizes and self.engines) and min(counts) >= 1,
                'n_classes, prompt_sizes, engines, image_size_px and n_runs must be 1 or more')
        require(self.out.suffix == '.csv', f'out is {self.out}; it must end in .csv')


@dataclass(frozen=True)
class Row:
    """One measurement.

    The clock runs from the image on the host to the semantic map on the host; for `upstream` from
    the resized image on the device to the masks on the device, as its own benchmark has it.

    Attributes:
        device: name of the GPU or CPU.
        engine, precision: what ran.
        encoder, input_size_px, image: of the network and of the frame.
        n_classes, prompt_size: what was asked.
        scenario: see the constants of this module.
        n, p50_ms, p90_ms, p99_ms: repetitions and wall-clock times.
        per_class_ms: cost of a further class, from the numbers of classes of this scenario.
        ratio_to_upstream: how many times faster than `upstream` on the same kind of device.
    """

    device: str
    engine: str
    precision: str
    encoder: str
    input_size_px: int
    image: str
    n_classes: int
    prompt_size: int
    scenario: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_class_ms: float | None = None
    ratio_to_upstream: float | None = None


@dataclass(frozen=True)
class _Subject:
    """Something to measure: where it runs, and what it does for a number of classes."""

    device: str
    engine: str
    precision: str
    steps: Callable[[int], dict[str, Step]]


def bench(settings: BenchSettings, say: Callable[[str], None] = print) -> list[Row]:
    """Measure everything and write the CSV.

    Args:
        settings: what to measure.
        say: prints a line.

    Raises:
        ParameterError: a setting is wrong, or nothing could be measured.
    """
    require_writable(settings.out.parent)
    device = device_named(settings.device)
    usable = _usable(settings.engines, say)
    require(bool(usable), 'none of the engines can be used here')
    rows: list[Row] = []
    total = len(usable) * len(settings.prompt_sizes) * len(settings.n_classes)
    with tempfile.TemporaryDirectory(prefix='blabberseg-fpseg-') as folder, \
            counter('measuring', total) as progress:
        for prompt_size in settings.prompt_sizes:
            config = FpSegConfig(
                encoder=ENCODERS[settings.encoder], input_size_px=settings.input_size_px,
                class_names=tuple(f'class {n}' for n in range(max(settings.n_classes))),
                prompt_size=prompt_size)
            model = random_fpseg(config)
            bundle = Path(folder) / f'ps{prompt_size}'
            for engine in usable:
                try:
                    subject = _subject(engine, model, bundle, device, settings)
                    for n_classes in settings.n_classes:
                        rows += _measure(subject, settings, n_classes, prompt_size)
                        progress.update()
                except BlabbersegError as error:
                    say(f'{engine}: {error}')
    require(bool(rows), 'nothing could be measured')
    rows = with_ratios(rows)
    _write(settings.out, rows)
    return rows


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Fill in what follows from several rows: the cost of a class, and the ratio to upstream."""
    base = {(row.device, row.n_classes, row.prompt_size): row.p50_ms for row in rows
            if row.engine == UPSTREAM and row.scenario == NEW_FRAME}
    result = []
    for row in rows:
        curve = [(float(other.n_classes), other.p50_ms) for other in rows
                 if (other.device, other.engine, other.precision, other.prompt_size,
                     other.scenario) == (row.device, row.engine, row.precision, row.prompt_size,
                                         row.scenario)]
        slope = None
        counts, times = zip(*curve, strict=True)
        if len(set(counts)) > 1:
            slope = round(float(np.polyfit(counts, times, 1)[0]), 4)
        upstream = base.get((row.device, row.n_classes, row.prompt_size))
        ratio = round(upstream / row.p50_ms, 2) if upstream and row.p50_ms else None
        result.append(replace(row, per_class_ms=slope, ratio_to_upstream=ratio))
    return result


def _usable(names: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Return the names that can be used here; say why the others cannot."""
    verdicts = {candidate.kind.name: candidate for candidate in candidates()}
    usable = []
    for name in names:
        if name in (UPSTREAM, TORCH):
            usable.append(name)
            continue
        verdict = verdicts.get(name)
        require(verdict is not None, f'{name!r} is not an engine; there are {UPSTREAM}, {TORCH}, '
                                     f'{", ".join(verdicts)}')
        if verdict is not None and verdict.ok:
            usable.append(name)
        elif verdict is not None:
            say(f'{name} is left out: {verdict.reason}')
    return usable


def _subject(engine: str, model: FpSeg, bundle: Path, device: torch.device,
             settings: BenchSettings) -> _Subject:
    image = np.random.default_rng(0).integers(
        0, 256, (*settings.image_size_px[::-1], 3), np.uint8)
    if engine == UPSTREAM:
        return _upstream_subject(model.to(device), image, device)
    if engine == TORCH:
        return _torch_subject(model.to(device), image, device)
    if not bundle.is_dir():
        # Graphs take a while, and torch engines need none.
        write_model(model.cpu(), bundle, graphs=any(
            name not in (UPSTREAM, TORCH, 'torch-cuda') for name in settings.engines))
    return _engine_subject(open_on_engine(str(bundle), engine, 'auto'), image)


def _upstream_subject(model: FpSeg, image: np.ndarray, device: torch.device) -> _Subject:
    """Return FPSeg's own way, from an image on the device at the input's size, as it measures."""
    side = (model.config.input_size_px, model.config.input_size_px)
    pixels = torch.from_numpy(cv2.resize(image, side)).to(device).permute(2, 0, 1)

    def masks(n_classes: int) -> Tensor:
        result = plain_masks(model, pixels, list(range(n_classes)), image.shape[:2])
        _wait_for(device)
        return result

    return _Subject(machine.device_name(device.type), UPSTREAM, 'fp32',
                    lambda n_classes: {NEW_FRAME: lambda _: masks(n_classes)})


def _torch_subject(model: FpSeg, image: np.ndarray, device: torch.device) -> _Subject:
    preprocess = Preprocessor(model.config, device)

    def encode() -> Tensor:
        return model.encode_images(preprocess(image)[None])

    def steps(n_classes: int) -> dict[str, Step]:
        tokens = model.prompt_encoder.prompt_embeddings[:n_classes]
        known = encode()

        def merged(code: Tensor) -> np.ndarray:
            highest, index = model.decode(code, tokens).max(dim=0)
            return torch.where(highest > 0, index, -1).int().cpu().numpy()

        return {NEW_FRAME: lambda _: merged(encode()), SAME_FRAME: lambda _: merged(known)}

    return _Subject(machine.device_name(device.type), TORCH, 'fp32', steps)


def _wait_for(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _engine_subject(backend: FpSegBackend, image: np.ndarray) -> _Subject:
    size = image.shape[0], image.shape[1]

    def steps(n_classes: int) -> dict[str, Step]:
        classes = backend.encode_prompts(backend.class_names[:n_classes])
        known = backend.encode_image(image)
        return {NEW_FRAME: lambda _: backend.semantic_map(
                    backend.encode_image(image), classes, size),
                SAME_FRAME: lambda _: backend.semantic_map(known, classes, size)}

    return _Subject(machine.device_name(backend.kind.device), backend.kind.name,
                    backend.precision, steps)


def _measure(subject: _Subject, settings: BenchSettings, n_classes: int,
             prompt_size: int) -> Iterator[Row]:
    limits = Limits(settings.n_runs, settings.seconds, settings.n_warmup)
    with torch.inference_mode():
        for scenario, step in subject.steps(n_classes).items():
            times = Times.of(repeat(step, limits))
            yield Row(subject.device, subject.engine, subject.precision, settings.encoder,
                      settings.input_size_px, '{}x{}'.format(*settings.image_size_px), n_classes,
                      prompt_size, scenario, times.n, times.p50_ms, times.p90_ms, times.p99_ms)


def _write(path: Path, rows: Sequence[Row]) -> None:
    where: dict[str, Any] = {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'commit': machine.commit(), 'threads': machine.threads(), 'versions': machine.versions()}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*where, *(field.name for field in fields(Row))],
                            lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow({name: '' if value is None else value
                         for name, value in {**where, **asdict(row)}.items()})
    write_text(path, stream.getvalue())
