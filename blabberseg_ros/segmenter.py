# SPDX-License-Identifier: Apache-2.0
"""An image and a prompt set in, a landing heatmap out. The one public entry of the core."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from blabberseg_ros.backends.base import Backend
from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.backends.values import Answer, ImageCode, LabelMap, Query, RunCounts, never
from blabberseg_ros.bundle import Bundle, find_bundle, load_bundle, user_cache_folder
from blabberseg_ros.engines.choose import AUTO, usable_engines
from blabberseg_ros.errors import (
    BundleError,
    Cancelled,
    EngineError,
    ImageError,
    NotFiniteError,
    ParameterError,
)
from blabberseg_ros.frame_cache import FrameCache, KnownFrame
from blabberseg_ros.heatmap import CacheHits, FusionOptions, Heatmap, Timings
from blabberseg_ros.parity.gate import Shapes, admit, nearest_shapes, shared_shapes
from blabberseg_ros.prompt_cache import PromptCache, PromptReport
from blabberseg_ros.prompt_store import PromptStore
from blabberseg_ros.prompts import PromptSet

_LOG = logging.getLogger(__name__)
MAX_PIXELS = 64_000_000
_DOVESEI = FusionOptions()


class Segmenter:
    """Landing heatmaps from one model on one engine, with its caches.

    Not thread-safe: one thread uses it.

    Attributes:
        bundle: the model.
        backend: what runs it.
    """

    def __init__(self, backend: Backend, *, cache_dir: Path | None = None,
                 others: Sequence[Backend] = (),
                 check: Callable[..., object] | None = None,
                 decode_budget_ms: float | None = None) -> None:
        """Wrap a back-end.

        Args:
            backend: not active yet.
            cache_dir: where prompt codes are kept; None keeps them in memory only.
            others: to use instead, in this order, if it cannot be activated.
            check: called with each back-end that was activated, and again with the `Shapes` of a
                request for which its engine has to be built anew; raises EngineError if its
                answers cannot be trusted.
            decode_budget_ms: see `open`.
        """
        self.backend = backend
        self._others = list(others)
        self._check = check
        self._decode_budget_ms = decode_budget_ms
        self._checked: set[Shapes] = set()
        self._images = FrameCache()
        self._prompts = PromptCache(PromptStore(cache_dir, backend.bundle.fingerprint)
                                    if cache_dir is not None and backend.keeps_codes else None)

    @classmethod
    def open(cls, bundle: str | Path, *, backend: str = AUTO, engine: str = AUTO,
             device: str = AUTO, cache_dir: Path | None = None,
             check_parity: bool = True, classes_files: Sequence[Path] = (),
             decode_budget_ms: float | None = None) -> 'Segmenter':
        """Find a bundle and the engines for it; nothing is loaded before `activate`.

        Args:
            bundle: folder, or name of an installed bundle; `auto` for the demonstration bundle of
                the family.
            backend: the family that is expected, or `auto` for the bundle's own.
            engine: name of an engine, or `auto` for the fastest.
            device: `cpu`, `cuda` or `auto`.
            cache_dir: where prompt codes are kept; None means the user's cache folder.
            check_parity: compare an engine with the reference before it is used for the first
                time (see `parity.gate`).
            classes_files: files of further classes, for a family that takes them (FPSeg).
            decode_budget_ms: time that a frame's classes may take, for the same family: they are
                decoded in the order of the prompts, negatives first, and those that are left when
                the time is up count as unsafe and are named in the message. None is no limit.

        Raises:
            BundleError: there is no such bundle, it is damaged or of another family; a file of
                classes cannot be used.
            EngineError: the engine cannot be used here.
            ParameterError: the family has no use for the time limit.
        """
        loaded = load_bundle(find_bundle(bundle, backend))
        family = loaded.manifest.family
        if backend not in (AUTO, family):
            raise BundleError(
                f'the bundle {loaded.folder} is of the family {family!r}, and the back-end '
                f'{backend!r} was asked for; leave backend at auto or choose another bundle')
        made = [backend_class(family)(loaded, kind)
                for kind in usable_engines(engine, device, loaded)]
        _check_budget(made[0], decode_budget_ms)
        for each in made:
            for path in classes_files:
                each.add_classes(path)
        return cls(made[0], others=made[1:], check=admit if check_parity else None,
                   decode_budget_ms=decode_budget_ms,
                   cache_dir=user_cache_folder() if cache_dir is None else cache_dir)

    @property
    def bundle(self) -> Bundle:
        """Return the model."""
        return self.backend.bundle

    @property
    def engine_name(self) -> str:
        """Return the name of the engine in use."""
        return self.backend.kind.name

    @property
    def precision(self) -> str:
        """Return the precision of the image path."""
        return self.backend.precision

    @property
    def run_counts(self) -> RunCounts:
        """Return how often the networks have run."""
        return self.backend.run_counts

    def avoid(self, engines: Collection[str]) -> None:
        """Take engines that have failed only if no other can be activated.

        Args:
            engines: their names. Called before `activate`.
        """
        self.backend, *self._others = sorted(
            (self.backend, *self._others), key=lambda backend: backend.kind.name in engines)

    def activate(self) -> None:
        """Load the model on the first engine that takes it and gives its answers.

        Raises:
            EngineError: no engine does; the message is about the last one.
        """
        while True:
            try:
                self.backend.activate()
                if self._check is not None:
                    self._check(self.backend)
                return
            except EngineError as error:
                self._take_next(error)

    def _take_next(self, error: EngineError) -> None:
        """Go on to the next engine after one has failed; the prompts' codes are the same.

        Raises:
            EngineError: the error itself, if there is none.
        """
        self.deactivate()
        if not self._others:
            raise error
        _LOG.warning('The engine %s is not used: %s. Trying %s', self.engine_name, error,
                     self._others[0].kind.name)
        self.backend = self._others.pop(0)

    def _check_shapes(self, shapes: Shapes) -> None:
        """Compare an engine that is built for each set of shapes before it answers for new ones.

        Raises:
            ImageError: it was built for other shapes.
            EngineError: it does not pass, and no other engine can be used.
        """
        if self._check is None or not self.backend.kind.per_shape or shapes in self._checked:
            return
        if (nearest := nearest_shapes(self.backend, shapes)) != shapes:
            raise ImageError(
                f'{self.engine_name} was built for other shapes than {shapes}; the nearest are '
                f'{nearest}. Send such images, or build plans for these (`blabberseg build`)')
        shared = shared_shapes(self.backend, shapes)
        try:
            if shared not in self._checked:
                self._check(self.backend, shared)
        except EngineError as error:
            self._take_next(error)
            self.activate()
            self._check_shapes(shapes)
        else:
            self._checked |= {shapes, shared}

    def deactivate(self) -> None:
        """Free the model and forget the images; the prompts stay known."""
        self._images.clear()
        self._checked.clear()
        self.backend.deactivate()

    def __enter__(self) -> 'Segmenter':
        """Load the model."""
        self.activate()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Free the model."""
        self.deactivate()

    def forget(self) -> None:
        """Empty the caches in memory, for example to free them after an out-of-memory error."""
        self._images.clear()
        self._prompts.clear()

    def encode(self, prompts: PromptSet) -> PromptReport:
        """Make the codes of a prompt set known, so that frames need not wait for them.

        Raises:
            PromptError: a prompt cannot be used.
            EngineError: the text tower fails.
        """
        return self._prompts.encode(prompts, self.backend).report

    def segment(self, image: np.ndarray, prompts: PromptSet,
                fusion: FusionOptions | None = None, *,
                with_probability: bool = True,
                cancelled: Callable[[], bool] = never) -> Heatmap:
        """Answer where it is safe to land.

        Args:
            image: uint8 [H, W, 3], RGB, of any size; it is stretched to the model's square.
            prompts: what is safe and what is not.
            fusion: threshold, blur and failure rules; DOVESEI's defaults if None.
            with_probability: False leaves the probability on the device, where that saves a copy.
            cancelled: looked at between pieces of work; True ends it.

        Returns:
            The heatmap at the image's size.

        Raises:
            ImageError: the image cannot be used.
            PromptError: a prompt cannot be used.
            EngineError: the network fails or answers NaN.
            Cancelled: `cancelled` answered True.
        """
        fusion = fusion or _DOVESEI
        check_image(image)
        started = time.perf_counter()
        known = self._prompts.encode(prompts, self.backend)
        self._check_shapes(Shapes(image.shape[1], image.shape[0], known.rows))
        encoded = time.perf_counter()

        def ask(code: ImageCode, cancelled: Callable[[], bool]) -> Answer:
            return self.backend.answer(code, known.codes, Query(
                prompts.is_positive, fusion, image.shape[:2], with_probability, cancelled,
                self._decode_budget_ms))

        likely = self._images.likely(image)
        answer, image_was_known, seen = None, True, encoded
        if likely is not None and self.backend.answers_on_device:
            answer = self._guess(likely, image, ask, cancelled)
        if answer is None:
            image_code, image_was_known = self._encode_image(image, likely)
            seen = time.perf_counter()
            answer = ask(image_code, cancelled)
        if not answer.finite:
            self._images.clear()  # the image code may hold the NaN
            raise NotFiniteError(
                'the network answered NaN or infinity for this frame, so nothing in it can be '
                'trusted; try again, or use fp32')
        return Heatmap(
            mask=answer.mask, probability=answer.probability, threshold=answer.threshold.value,
            success=answer.threshold.success,
            message='; '.join(filter(None, (
                _message(known.report, answer.threshold.success, fusion), *answer.notes))),
            timings=Timings(
                encode_text_ms=(encoded - started) * 1e3, encode_image_ms=(seen - encoded) * 1e3,
                decode_ms=answer.decode_ms, fuse_ms=answer.fuse_ms,
                threshold_ms=answer.threshold_ms, total_ms=_ms_since(started)),
            cache_hits=CacheHits(image_was_known, known.report.cached, known.report.encoded))

    def label_map(self, image: np.ndarray) -> LabelMap | None:
        """Return the likeliest label of each pixel, or None if the model has no labels of its own.

        A frame that was just segmented is not encoded again.

        Args:
            image: uint8 [H, W, 3], RGB.

        Raises:
            ImageError: the image cannot be used.
            EngineError: the network fails.
        """
        check_image(image)
        code, _ = self._encode_image(image, self._images.likely(image))
        return self.backend.label_map(code, image.shape[:2])

    def _guess(self, likely: KnownFrame, image: np.ndarray,
               ask: Callable[[ImageCode, Callable[[], bool]], Answer],
               cancelled: Callable[[], bool]) -> Answer | None:
        """Return the answer of a device for a known frame; None if the image is another.

        The device answers for the frame while the host compares all of the image's bytes with it.

        Args:
            likely: the frame that the image looks like.
            image: as for `segment`.
            ask: returns the answer for an image code, unless what it is given answers True.
            cancelled: as for `segment`.
        """
        compared: list[bool] = []

        def same() -> bool:
            if not compared:
                compared.append(self._images.find(image) is likely)
            return compared[0]

        try:
            answer = ask(likely.code, lambda: cancelled() or not same())
        except Cancelled:
            if same():
                raise
            return None
        return answer if same() else None

    def _encode_image(self, image: np.ndarray,
                      likely: KnownFrame | None) -> tuple[ImageCode, bool]:
        """Return the image's code and whether it was known.

        Args:
            image: as for `segment`.
            likely: what `FrameCache.likely` said of it; None saves a second look.
        """
        known = self._images.find(image) if likely is not None else None
        if known is not None:
            return known.code, True
        code = self.backend.encode_image(image)
        self._images.keep(image, code)
        return code, False


def check_image(image: np.ndarray) -> None:
    """Refuse what is not an image.

    Raises:
        ImageError: wrong shape, type or size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f'the image is {image.dtype} {list(image.shape)}; uint8 [height, width, 3] in RGB '
            'order is needed')
    height, width = image.shape[:2]
    if height * width == 0:
        raise ImageError(f'the image is empty ({width}x{height} pixels)')
    if height * width > MAX_PIXELS:
        raise ImageError(
            f'the image has {width}x{height} pixels; at most {MAX_PIXELS // 1_000_000} million '
            'are taken. Make it smaller at the camera')


def _check_budget(backend: Backend, decode_budget_ms: float | None) -> None:
    if decode_budget_ms is None:
        return
    if not backend.decodes_in_order:
        raise ParameterError(
            f'the family {backend.family} decodes all prompts at once, so the time for it cannot '
            'be limited; leave the decoding budget out')
    if not decode_budget_ms > 0:
        raise ParameterError(f'a decoding budget of {decode_budget_ms} ms leaves no time for any '
                             'class; give more than 0, or none for no limit')


def _message(report: PromptReport, success: bool, fusion: FusionOptions) -> str:
    parts = [report.message] if report.message else []
    if not success:
        floor = f' above {fusion.min_threshold:g}' if fusion.min_threshold > 0 else ''
        parts.append(
            f'no threshold{floor} makes {fusion.dynamic_threshold:.0%} of the image safe')
    return '; '.join(parts)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
