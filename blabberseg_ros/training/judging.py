# SPDX-License-Identifier: Apache-2.0
"""The whole examination of a model, the same in training and for the shipped bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.training.evaluation import (
    Predictor,
    canonical_phrases,
    choose_threshold,
    held_out_phrases,
    histograms,
    obedience_scores,
    safety_score,
)
from blabberseg_ros.training.views import LabelledView

_OBEDIENCE_ON = ('held_out', 'test')
# What the service calls safe unless it is asked for something else.
SERVICE_THRESHOLD = FusionOptions().safety_threshold


def judge(predictor: Predictor, views: Mapping[str, Sequence[LabelledView]], measured_with: str,
          obedience_views: int | None = None, reads_words: bool = True) -> dict[str, Any]:
    """Measure everything that the card reports.

    Args:
        predictor: the model.
        views: `validation`, on which the threshold is chosen, and any of `test`, `held_out` and
            `real`.
        measured_with: program and device, for the record.
        obedience_views: test views, spread evenly, on which obedience is measured; it asks each
            of them some fifty times. None: all.
        reads_words: whether phrases that training never showed can be asked for.

    Returns:
        Plain values: threshold, safety (by kind of view), obedience_views, obedience,
        unseen_phrases (both lists of `ObedienceScore`, at the service's threshold and at the
        chosen one), measured_with.
    """
    found = {kind: histograms(predictor, seen) for kind, seen in views.items() if seen}
    threshold = choose_threshold(found['validation'])
    examined = [view for kind in _OBEDIENCE_ON for view in views.get(kind, ())]
    if obedience_views is not None and obedience_views < len(examined):
        step = len(examined) / obedience_views
        examined = [examined[int(number * step)] for number in range(obedience_views)]
    limits = (SERVICE_THRESHOLD, threshold)
    return {
        'threshold': threshold,
        'safety': {kind: asdict(safety_score(seen, threshold)) for kind, seen in found.items()},
        'obedience_views': len(examined),
        'obedience': [asdict(score) for score in obedience_scores(
            predictor, examined, limits, canonical_phrases())],
        'unseen_phrases': [asdict(score) for score in obedience_scores(
            predictor, examined, limits, held_out_phrases())] if reads_words else [],
        'measured_with': measured_with,
    }


def summary(metrics: Mapping[str, Any]) -> str:
    """Return the figures in a few lines for a terminal."""
    lines = [f'threshold {metrics["threshold"]:.3f}']
    for kind, score in metrics['safety'].items():
        recall = ' '.join(f'{name} {value:.2f}' for name, value in score['recall'].items())
        lines.append(f'{kind}: IoU safe {score["safe_iou"]:.3f} unsafe '
                     f'{score["unsafe_iou"]:.3f}; right: {recall}')
    for title in (key for key in ('obedience', 'unseen_phrases') if metrics[key]):
        lines.append(f'{title}: ' + ', '.join(
            f'{score["phrase"]} {score["before"]:.2f}>{score["after"]:.2f} '
            + '/'.join(f'{100 * flip["flipped"]:.0f}' for flip in score['flips']) + '%'
            for score in metrics[title]))
    return '\n'.join(lines)
