# SPDX-License-Identifier: Apache-2.0
"""Segformer B4 at 512 pixels with random weights: our engines beside eager torch, in one run.

- label map: from the image on the host to the likeliest label of each pixel on the host.
- new frame: from the image on the host to the landing mask on the host.

Both sides run the same weights.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from blabberseg_ros.backends.segformer import SegformerBackend
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bench.machine import device_name
from blabberseg_ros.bench.records import NEW_FRAME, STAGE, Row, Times, make_row
from blabberseg_ros.bench.timing import Limits, repeat
from blabberseg_ros.bundle import Bundle, load_bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.prompts import PromptSet

PLAIN = 'torch eager, OpenCV'
LABEL_MAP = 'label map'
SIZE_PX = (640, 480)
_FRAMES = 4
_LABELS = 35


def make_models(folder: Path, *, graphs: bool) -> tuple[Path, Bundle]:
    """Write B4 for both sides, once.

    Args:
        folder: to write into.
        graphs: whether our bundle gets ONNX graphs; torch engines need none.

    Returns:
        The Hugging Face folder and our bundle.
    """
    from blabberseg_ros.bench.baselines_segformer import write_random_folder
    from blabberseg_ros.bench.model import write_model
    from blabberseg_ros.models.import_segformer import import_model
    from blabberseg_ros.models.importing import ImportOptions

    theirs, ours = folder / 'hugging_face', folder / 'bundle'
    write_random_folder(theirs)
    write_model(import_model(theirs, ImportOptions()).model, ours, graphs=graphs)
    return theirs, load_bundle(ours)


def prompts_of(bundle: Bundle) -> PromptSet:
    """Return every third label as safe, all others as unsafe."""
    labels = tuple(bundle.manifest.architecture['labels'])
    return PromptSet(labels[::3], tuple(name for i, name in enumerate(labels) if i % 3))


def measure_plain(folder: Path, bundle: Bundle, device: str, limits: Limits) -> Iterator[Row]:
    """Measure eager torch in fp32 with OpenCV and NumPy on the CPU behind it.

    Raises:
        EngineError: transformers is not installed.
    """
    from blabberseg_ros.bench.baselines_segformer import PlainSegformer

    plain = PlainSegformer(folder, device, bundle.manifest.input_size_px)
    frames, size, fusion = moving_frames(_FRAMES, SIZE_PX), SIZE_PX[::-1], FusionOptions()
    safe = np.arange(len(bundle.manifest.architecture['labels'])) % 3 == 0

    def logits(index: int) -> np.ndarray:
        return plain.infer(plain.preprocess(frames[index % _FRAMES]))

    known = logits(0)
    yield from _rows(device, PLAIN, 'fp32', limits, {
        (LABEL_MAP, ''): lambda index: plain.label_map(logits(index), size),
        (NEW_FRAME, ''): lambda index: plain.mask(logits(index), safe, fusion, size),
        (STAGE, 'preprocess'): lambda index: plain.preprocess(frames[index % _FRAMES]),
        (STAGE, 'preprocess, network'): logits,
        (STAGE, 'label map on the host'): lambda _: plain.label_map(known, size),
        (STAGE, 'mask on the host'): lambda _: plain.mask(known, safe, fusion, size)})


def measure_engine(bundle: Bundle, kind: EngineKind, limits: Limits) -> Iterator[Row]:
    """Measure one of our engines.

    Raises:
        EngineError: it cannot run the model.
    """
    backend = SegformerBackend(bundle, kind)
    backend.activate()
    prompts = prompts_of(bundle)
    codes = backend.encode_prompts(backend.texts(prompts))
    frames, size = moving_frames(_FRAMES, SIZE_PX), SIZE_PX[::-1]
    query = Query(prompts.is_positive, FusionOptions(), size, False)

    def code(index: int) -> object:
        return backend.encode_image(frames[index % _FRAMES])

    known = code(0)
    try:
        yield from _rows(kind.device, kind.name, backend.precision, limits, {
            (LABEL_MAP, ''): lambda index: backend.label_map(code(index), size),
            (NEW_FRAME, ''): lambda index: backend.answer(code(index), codes, query),
            (STAGE, 'label map'): lambda _: backend.label_map(known, size),
            (STAGE, 'answer'): lambda _: backend.answer(known, codes, query)})
    finally:
        backend.deactivate()
        gc.collect()


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as lines, with the ratio to the plain network on the same device."""
    known = {(row.device, row.engine, row.scenario, row.detail): row.p50_ms for row in rows}
    lines = ['', f'{"engine":22} {"":5} {"what":34} {"p50 ms":>9} {"p99 ms":>9} {"x plain":>8}']
    for row in rows:
        plain = known.get((row.device, PLAIN, row.scenario, row.detail))
        ratio = f'{plain / row.p50_ms:.1f}' if plain and row.engine != PLAIN else ''
        what = f'{row.scenario}: {row.detail}' if row.detail else row.scenario
        lines.append(f'{row.engine:22} {row.precision:5} {what:34} {row.p50_ms:9.2f} '
                     f'{row.p99_ms:9.2f} {ratio:>8}')
    return lines


def _rows(device: str, engine: str, precision: str, limits: Limits,
          calls: dict[tuple[str, str], Callable[[int], object]]) -> Iterator[Row]:
    for (scenario, detail), call in calls.items():
        yield make_row(device_name(device), engine, precision, scenario,
                       Times.of(repeat(call, limits)), detail=detail, prompts=_LABELS,
                       size_px=SIZE_PX)
