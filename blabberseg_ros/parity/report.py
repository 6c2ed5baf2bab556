# SPDX-License-Identifier: Apache-2.0
"""The outcome of a comparison with the reference, in figures that can be kept as JSON."""

import json
import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from blabberseg_ros.errors import EngineError
from blabberseg_ros.parity.metrics import ThresholdCheck


class Outcome(str, Enum):
    """What a comparison says of an engine. Only PASS is a pass."""

    PASS = 'pass'
    FAIL = 'fail'
    UNDECIDABLE = 'undecidable'


@dataclass(frozen=True)
class FrameFigures:
    """One frame, compared with the reference.

    Attributes:
        frame: index or name.
        cosine: smallest over the prompts, on mean-centred logits.
        max_dp, p99_dp, mean_dp: absolute difference of the probabilities.
        checks: masks at the reference's threshold, for each area fraction.
        threshold: that the engine found for the default fusion.
        threshold_change: by how much it differs from the reference's own.
        mask_errors: pixels of the engine's mask that do not follow from its own probability and
            threshold.
    """

    frame: str
    cosine: float
    max_dp: float
    p99_dp: float
    mean_dp: float
    checks: tuple[ThresholdCheck, ...]
    threshold: float
    threshold_change: float
    mask_errors: int


@dataclass(frozen=True)
class ParityReport:
    """A comparison of an engine with the reference.

    Attributes:
        outcome: PASS, FAIL or UNDECIDABLE.
        reasons: why it is not a pass; empty if it is one.
        engine: that was tested.
        precision: of the engine.
        reference: engine that it was compared with.
        prompts: number of prompts.
        cosine_required: smallest cosine that passes.
        iou_required: smallest mask IoU that passes; None if it is only reported.
        frames: figures of each frame.
        seconds: that the comparison took.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    engine: str
    precision: str
    reference: str
    prompts: int
    cosine_required: float
    iou_required: float | None
    frames: tuple[FrameFigures, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether the engine may be used."""
        return self.outcome is Outcome.PASS

    @property
    def figures(self) -> dict[str, float]:
        """Return the worst figure of each kind over all frames, for the record of a plan."""
        decidable = [check for frame in self.frames for check in frame.checks if check.decidable]
        return {
            'cosine_min': min(frame.cosine for frame in self.frames),
            'max_dp': max(frame.max_dp for frame in self.frames),
            'p99_dp': max(frame.p99_dp for frame in self.frames),
            'mean_dp': max(frame.mean_dp for frame in self.frames),
            'flips': float(sum(check.flips for check in decidable)),
            'mask_iou_min': min((check.iou for check in decidable), default=math.nan),
            'mask_errors': float(sum(frame.mask_errors for frame in self.frames)),
            'threshold_change': max((frame.threshold_change for frame in self.frames), key=abs),
            'masks_decidable': float(len(decidable)),
            'masks': float(sum(len(frame.checks) for frame in self.frames)),
        }

    def summary(self) -> str:
        """Return the figures in one line."""
        figures = self.figures
        text = (f'{self.engine} {self.precision} against {self.reference}: {self.outcome.value}, '
                f'cosine {figures["cosine_min"]:.6f} (at least {self.cosine_required:g}), '
                f'|dp| max {figures["max_dp"]:.2e} p99 {figures["p99_dp"]:.2e}, '
                f'{figures["flips"]:.0f} pixels flipped, mask IoU {figures["mask_iou_min"]:.4f}, '
                f'{figures["masks_decidable"]:.0f} of {figures["masks"]:.0f} masks decidable')
        return text + (f'; {"; ".join(self.reasons)}' if self.reasons else '')

    def to_json(self) -> str:
        """Return the report as JSON; NaN is written as null."""
        return json.dumps(_without_nan(asdict(self)), indent=2) + '\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> 'ParityReport':
        """Return what `to_json` wrote.

        Raises:
            EngineError: it is damaged.
        """
        try:
            content = json.loads(text)
            frames = tuple(_frame(values) for values in content.pop('frames'))
            outcome = Outcome(content.pop('outcome'))
            reasons = tuple(content.pop('reasons'))
            return cls(outcome=outcome, reasons=reasons, frames=frames, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(f'the parity report is damaged ({error})') from error


def _frame(values: dict[str, Any]) -> FrameFigures:
    checks = tuple(ThresholdCheck(**check) for check in values.pop('checks'))
    known: dict[str, Any] = {name: math.nan if value is None else value
                             for name, value in values.items()}
    return FrameFigures(**known, checks=checks)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
