# SPDX-License-Identifier: Apache-2.0
"""The parity gate: an engine is used only if it answers as the network in fp32 does.

Exports, compilers and half precision fail in ways that no error message tells: prompts in another
order, a plain GELU, a lost position embedding. So each engine segments two fixed frames for the
family's example prompts, DOVESEI's thirteen where any text will do, before it is trusted. It is
compared with torch in fp32 on the CPU, or, where torch is not installed, with ONNX Runtime in fp32
on the CPU, which the test suite holds to torch. A pass is remembered for the same model, engine,
libraries and GPU.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from blabberseg_ros.backends.base import Backend
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bundle import Bundle, Manifest
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.errors import EngineError, NotFiniteError, ParityError
from blabberseg_ros.heatmap import (
    FusionOptions,
    apply_threshold,
    find_threshold,
)
from blabberseg_ros.parity import reference as torch_reference
from blabberseg_ros.parity.frames import GATE, gate_frames
from blabberseg_ros.parity.metrics import (
    AREA_FRACTIONS,
    FLIP_MARGIN,
    centred_cosines,
    check_threshold,
    difference,
)
from blabberseg_ros.parity.report import FrameFigures, Outcome, ParityReport
from blabberseg_ros.parity.store import ParityStore, identity_of
from blabberseg_ros.prompts import PromptSet

_LOG = logging.getLogger(__name__)
COSINE_REQUIRED = {'fp32': 0.9999, 'tf32': 0.999, 'fp16': 0.999, 'bf16': 0.999}
IOU_REQUIRED = 0.99
# In a smaller frame a handful of pixels next to the threshold are more than 1 % of a mask.
IOU_FROM_PX = 10_000
MASKS_REQUIRED = 3
# Engines that capture do so at the second run of a set of shapes; later runs replay.
RUNS_PER_SHAPE = 3
# What a bundle made by a `models.random_FAMILY` says of its source. Its masks are noise, whose
# borders are everywhere, so their IoU is only reported.
RANDOM_WEIGHTS = 'random weights'
_CPU_RUNTIME = 'onnxruntime-cpu'


@dataclass(frozen=True)
class Shapes:
    """What an engine may be built for: width and height of the image, rows of the logits."""

    width_px: int
    height_px: int
    rows: int

    def __str__(self) -> str:
        """Return them for a reader."""
        return f'{self.width_px}x{self.height_px} pixels and {self.rows} maps'


def admit(backend: Backend, shapes: Shapes | None = None,
          store: ParityStore | None = None) -> ParityReport | None:
    """Let an engine pass that gives the reference's answers.

    Args:
        backend: active.
        shapes: to compare it for, from `shared_shapes`, if it is built for each set of them; None
            for those of the gate's own frames and prompts.
        store: of earlier passes; the user's if None.

    Returns:
        The report, from now or from an earlier pass; None if the engine is itself a reference,
        or if nothing is installed to compare it with (which is logged).

    Raises:
        ParityError: the engine does not pass; the message holds the figures.
        EngineError: the engine, or the reference, fails.
    """
    if _is_reference(backend.kind):
        return None
    own = _own_shapes(backend)
    if shapes in [shared_shapes(backend, each) for each in own]:
        shapes = None
    kind = reference_kind(backend.bundle)
    if kind is None:
        _LOG.warning(
            'Neither torch nor onnxruntime is installed, so the answers of %s could not be '
            'compared with anything. Install one of them, once, to have them checked',
            backend.kind.name)
        return None
    store = store if store is not None else ParityStore()
    wanted = own if shapes is None else [shapes] * len(own)
    identity = identity_of(backend, kind.name, ', '.join(map(str, wanted)))
    known = store.load(identity)
    if known is not None:
        return known
    _LOG.info('Comparing %s with %s%s; this is done once', backend.kind.name, kind.name,
              '' if shapes is None else f' for {shapes}')
    reference = type(backend)(backend.bundle, kind)
    reference.activate()
    try:
        report = check_parity(
            reference, backend, frames=_frames_of(wanted),
            prompts=backend.example_prompts(wanted[0].rows), masks_required=shapes is None)
    finally:
        reference.deactivate()
    if not report.passed:
        raise ParityError(f'the engine is refused, its answers are not those of the network '
                          f'({report.summary()}). Use another engine or fp32, and report this')
    _LOG.info('%s', report.summary())
    store.save(identity, report)
    _record(backend, report)
    return report


def _record(backend: Backend, report: ParityReport) -> None:
    """Keep the figures beside what was built, if that can be: they are for people to read."""
    for engine in backend.active_engines:
        try:
            engine.record_parity(report.figures)
        except EngineError as error:
            _LOG.warning('The parity figures of %s are not kept: %s', engine.stage, error)


def _own_shapes(backend: Backend) -> list[Shapes]:
    """Return the shapes of the gate's frames and prompts, as far as the engine takes them."""
    rows = backend.rows(backend.texts(backend.example_prompts()))
    return [nearest_shapes(backend, Shapes(*pose.size_px, rows)) for pose in GATE]


def nearest_shapes(backend: Backend, shapes: Shapes) -> Shapes:
    """Return the shapes nearest to some that the engine was built for."""
    return Shapes(*backend.kind.nearest_shapes(
        backend.bundle, shapes.width_px, shapes.height_px, shapes.rows))


def shared_shapes(backend: Backend, shapes: Shapes) -> Shapes:
    """Return which of the shapes that run on what is built for these stand for all of them.

    They are the smallest, where an engine that pads has the most padding.
    """
    if backend.rows_are_labels:
        return shapes
    return replace(shapes, rows=backend.kind.fewest_alike(shapes.rows))


def _frames_of(wanted: Sequence[Shapes]) -> list[np.ndarray]:
    sizes = [(shapes.width_px, shapes.height_px) for shapes in wanted]
    return [frame if frame.shape[1::-1] == size else cv2.resize(frame, size)
            for frame, size in zip(gate_frames(), sizes, strict=True)]


def reference_kind(bundle: Bundle) -> EngineKind | None:
    """Return the engine to compare with: torch on the CPU, else ONNX Runtime on the CPU.

    Returns:
        None if neither can run the bundle here.
    """
    from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu

    if torch_reference.TorchCpu().probe().ok:
        return torch_reference.TorchCpu()
    if bundle.manifest.graphs and OnnxRuntimeCpu().probe().ok:
        return OnnxRuntimeCpu()
    return None


def check_parity(reference: Backend, tested: Backend, *,
                 frames: Sequence[np.ndarray] | None = None,
                 prompts: PromptSet | None = None,
                 masks_required: bool = True) -> ParityReport:
    """Compare two engines on the same model.

    Args:
        reference: active, in fp32.
        tested: active.
        frames: uint8 [H, W, 3], RGB; those of the gate if None.
        prompts: the family's example prompts if None.
        masks_required: see `judge`.

    Raises:
        EngineError: an engine fails. NaN from the tested one is a FAIL, not an error.
    """
    started = time.perf_counter()
    frames = gate_frames() if frames is None else frames
    prompts = prompts or tested.example_prompts()
    texts = tested.texts(prompts)
    try:
        codes = (reference.encode_prompts(texts), tested.encode_prompts(texts))
        figures = tuple(
            compare_frame(reference, tested, image, prompts, codes, str(index))
            for index, image in enumerate(frames))
    except NotFiniteError:
        figures = (_not_finite(),)
    cosine_required = COSINE_REQUIRED.get(tested.precision, COSINE_REQUIRED['fp16'])
    judges_iou = has_trained_weights(tested.bundle.manifest) and all(
        frame.shape[0] * frame.shape[1] >= IOU_FROM_PX for frame in frames)
    iou_required = IOU_REQUIRED if judges_iou else None
    outcome, reasons = judge(figures, cosine_required, iou_required, masks_required)
    return ParityReport(
        outcome, reasons, tested.kind.name, tested.precision, reference.kind.name, len(prompts),
        cosine_required, iou_required, figures, round(time.perf_counter() - started, 3))


def compare_frame(reference: Backend, tested: Backend, image: np.ndarray, prompts: PromptSet,
                  codes: tuple[Any, Any], name: str) -> FrameFigures:
    """Compare two engines on one frame, stage by stage as far as each engine shows them.

    The reference's probability is computed from its logits by the NumPy rules in `heatmap`, so
    that a mistake in an engine's own fusion shows.

    Args:
        reference: active.
        tested: active.
        image: uint8 [H, W, 3], RGB.
        prompts: what is safe and what is not.
        codes: of the prompts, by the reference and by the tested engine.
        name: of the frame.

    Raises:
        EngineError: an engine fails.
    """
    fusion, size = FusionOptions(), (image.shape[0], image.shape[1])
    wanted = reference.to_host(reference.decode(reference.encode_image(image), codes[0]))
    for _ in range(RUNS_PER_SHAPE if tested.kind.per_shape else 1):
        code = tested.encode_image(image)
        answer = tested.answer(code, codes[1], Query(prompts.is_positive, fusion, size))
        logits = tested.decode(code, codes[1])
    got = tested.to_host(logits)
    cosines = centred_cosines(wanted, got)
    if answer.probability is None or not (answer.finite and np.isfinite(cosines).all()):
        raise NotFiniteError(f'{tested.kind.name} answered NaN or infinity')
    expected = reference.to_image(
        reference.reference_probability(wanted, codes[0], prompts.is_positive),
        fusion.blur_kernel_size, size)
    apart = difference(expected, answer.probability)
    own = find_threshold(answer.probability, fusion)
    mask = apply_threshold(answer.probability, own, fusion.on_failure)
    return FrameFigures(
        name, float(cosines.min()), apart.max, apart.p99, apart.mean,
        tuple(check_threshold(expected, answer.probability, fraction)
              for fraction in AREA_FRACTIONS),
        answer.threshold.value, answer.threshold.value - find_threshold(expected, fusion).value,
        int(np.count_nonzero(mask != answer.mask)))


def judge(frames: Sequence[FrameFigures], cosine_required: float,
          iou_required: float | None,
          masks_required: bool = True) -> tuple[Outcome, tuple[str, ...]]:
    """Return the outcome and, if it is not a pass, why.

    Three area fractions have to be decidable, each on one frame at least, by three different
    masks: an engine is not passed on masks that any engine would have given.

    Args:
        frames: figures of each.
        cosine_required: smallest of the logits that passes.
        iou_required: smallest of the masks that passes; None if it does not count.
        masks_required: False for an engine that has passed already, at shapes of its own, and is
            looked at again for those of a request. If these decide nothing (few pixels, two
            prompts), its probabilities are judged instead: nowhere further apart than pixels may
            be that change sides, but for one in a hundred.
    """
    reasons = []
    for frame in frames:
        where = f'frame {frame.frame}'
        if not np.isfinite(frame.cosine):
            reasons.append(f'{where}: the answer holds NaN or infinity')
            continue
        if frame.cosine < cosine_required:
            reasons.append(f'{where}: cosine of the logits {frame.cosine:.6f} is below '
                           f'{cosine_required:g}')
        if frame.mask_errors:
            reasons.append(f'{where}: {frame.mask_errors} pixels of the mask do not follow from '
                           'its probability')
        for check in frame.checks:
            if check.decidable and check.flips:
                reasons.append(f'{where}: {check.flips} pixels more than {FLIP_MARGIN} from the '
                               f'threshold {check.threshold:.3f} changed sides')
            if check.decidable and iou_required is not None and check.iou < iou_required:
                reasons.append(f'{where}: mask IoU {check.iou:.4f} at threshold '
                               f'{check.threshold:.3f} is below {iou_required:g}')
    if reasons:
        return Outcome.FAIL, tuple(reasons)
    decided = [(frame.frame, check) for frame in frames for check in frame.checks
               if check.decidable]
    fractions = {check.fraction for _, check in decided}
    masks = {(frame, check.threshold) for frame, check in decided}
    if min(len(fractions), len(masks)) >= MASKS_REQUIRED:
        return Outcome.PASS, ()
    if masks_required:
        return Outcome.UNDECIDABLE, (
            f'at {len(fractions)} of {len(AREA_FRACTIONS)} area fractions a reference mask covers '
            f'between 5 % and 95 % of a frame, {len(masks)} different masks in all, and '
            f'{MASKS_REQUIRED} of both are needed; the others decide nothing',)
    reasons = [f'frame {frame.frame}: the probabilities differ by more than {FLIP_MARGIN} '
               f'(p99 {frame.p99_dp:.3f})' for frame in frames if not frame.p99_dp <= FLIP_MARGIN]
    return (Outcome.FAIL, tuple(reasons)) if reasons else (Outcome.PASS, ())


def has_trained_weights(manifest: Manifest) -> bool:
    """Return whether a bundle's weights are more than random numbers."""
    return not manifest.source.lower().startswith(RANDOM_WEIGHTS)


def _is_reference(kind: EngineKind) -> bool:
    return kind.name in (torch_reference.NAME, _CPU_RUNTIME) and (
        getattr(kind, 'precision', 'fp32') == 'fp32')


def _not_finite() -> FrameFigures:
    nan = float('nan')
    return FrameFigures('0', nan, nan, nan, nan, (), nan, nan, 0)
