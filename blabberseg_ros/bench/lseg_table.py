# SPDX-License-Identifier: Apache-2.0
"""The table of LSeg-TensorRT's README on this machine: size by stage by engine.

- encode image: from the image on the host to what the engine keeps of it; of the plain network
  the vectors of all pixels on the host, as LSeg-TensorRT has them.
- encode text: thirteen labels, nothing cached.
- frame: from the image on the host to the mask on the host, labels known.
- total: the same with the labels encoded each time.

Of the plain network one more is measured, without the copy of the vectors to the host.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bench.machine import device_name
from blabberseg_ros.bench.records import Row, Times, make_row
from blabberseg_ros.bench.timing import Limits, repeat
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models.lseg_config import rounded_size
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.prompts import PromptSet

PLAIN = 'plain torch'
SIZES_PX = (260, 390, 520, 650, 780, 910)
STAGES = ('encode image', 'encode text', 'frame', 'total')
NO_COPY = 'encode image, not copied'
_FRAMES = 4


def measure_plain(bundle: Bundle, device: str, sizes_px: Sequence[int], prompts: PromptSet,
                  limits: Limits) -> Iterator[Row]:
    """Measure the network as LSeg-TensorRT computes it, eager in fp32.

    Its own way from the vectors to a label map, in NumPy on the host, is left out.
    """
    from blabberseg_ros.bench.lseg_plain import PlainLSeg

    plain = PlainLSeg(bundle, device)
    wait = _waiter(device)

    def calls(side_px: int, frames: Sequence[np.ndarray]) -> dict[str, Callable[[int], object]]:
        def image(index: int) -> object:
            return plain.encode_image(frames[index % _FRAMES], side_px)

        def text(_: int) -> object:
            return plain.encode_text(prompts.texts)

        return {NO_COPY: lambda index: (
                    plain.encode_on_device(frames[index % _FRAMES], side_px), wait()),
                'encode image': image, 'encode text': text, 'frame': image,
                'total': lambda index: (image(index), text(index))}

    yield from _rows(calls, device, PLAIN, 'fp32', sizes_px, prompts, limits)


def measure_engine(bundle: Bundle, kind: EngineKind, sizes_px: Sequence[int],
                   prompts: PromptSet, limits: Limits) -> Iterator[Row]:
    """Measure one of our engines.

    Raises:
        EngineError: it cannot run the model.
    """
    backend = LSegBackend(bundle, kind)
    backend.activate()
    codes = backend.encode_prompts(prompts.texts)
    wait = _waiter(kind.device)

    def calls(side_px: int, frames: Sequence[np.ndarray]) -> dict[str, Callable[[int], object]]:
        query = Query(prompts.is_positive, FusionOptions(), (side_px, side_px), False)
        backend.use_size(side_px)

        def image(index: int) -> object:
            return backend.encode_image(frames[index % _FRAMES])

        def text(_: int) -> object:
            return backend.encode_prompts(prompts.texts)

        return {
            'encode image': lambda index: (image(index), wait()),
            'encode text': text,
            'frame': lambda index: backend.answer(image(index), codes, query),
            'total': lambda index: backend.answer(
                image(index), backend.encode_prompts(prompts.texts), query)}

    try:
        yield from _rows(calls, kind.device, kind.name, backend.precision, sizes_px, prompts,
                         limits)
    finally:
        backend.deactivate()
        gc.collect()


def table(rows: Sequence[Row], sizes_px: Sequence[int]) -> list[str]:
    """Return the rows as lines: one for each engine and size asked for."""
    lines = ['', f'{"engine":18} {"":5} {"asked":>5} {"run at":>7} '
             + ' '.join(f'{stage:>12}' for stage in STAGES)
             + f' {"x plain":>8}   ms, median of each']
    known = {(row.device, row.engine, row.precision, row.input, row.scenario): row.p50_ms
             for row in rows}
    engines = dict.fromkeys((row.device, row.engine, row.precision) for row in rows)
    for device, engine, precision in engines:
        for asked in sizes_px:
            size = f'{rounded_size(asked)}x{rounded_size(asked)}'
            times = [known.get((device, engine, precision, size, stage)) for stage in STAGES]
            plain = known.get((device, PLAIN, 'fp32', size, 'frame'))
            ratio = f'{plain / times[2]:.1f}' if plain and times[2] else ''
            if any(times):
                lines.append(
                    f'{engine:18} {precision:5} {asked:5} {rounded_size(asked):7} '
                    + ' '.join(f'{value:12.2f}' if value else f'{"":12}' for value in times)
                    + f' {ratio:>8}')
    for row in rows:
        if row.scenario == NO_COPY:
            lines.append(f'{row.engine} at {row.input} on {row.device} takes {row.p50_ms:.2f} ms '
                         'if the vectors of the pixels are not copied to the host')
    if any(rounded_size(asked) != asked for asked in sizes_px):
        lines.append('sizes that are no multiples of 32 were run at the nearest one that is')
    return lines


def _rows(calls: Callable[[int, Sequence[np.ndarray]], dict[str, Callable[[int], object]]],
          device: str, engine: str, precision: str, sizes_px: Sequence[int],
          prompts: PromptSet, limits: Limits) -> Iterator[Row]:
    for side_px in dict.fromkeys(rounded_size(size) for size in sizes_px):
        frames = moving_frames(_FRAMES, (side_px, side_px))
        for stage, call in calls(side_px, frames).items():
            yield make_row(device_name(device), engine, precision, stage,
                           Times.of(repeat(call, limits)), prompts=len(prompts),
                           size_px=(side_px, side_px))


def _waiter(device: str) -> Callable[[], object]:
    """Return a function that waits until the device has done everything."""
    torch = sys.modules.get('torch')
    if device == 'cuda' and torch is not None:
        return torch.cuda.synchronize
    return lambda: None
