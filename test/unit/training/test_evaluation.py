# SPDX-License-Identifier: Apache-2.0
"""The measures, on predictors whose figures are known beforehand."""

import cv2
import numpy as np
import pytest

from blabberseg_ros.errors import ImageError
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.sim.classes import CLASSES, SAFE
from blabberseg_ros.training.evaluation import (
    CLASS_IDS,
    canonical_phrases,
    choose_threshold,
    class_prompts,
    held_out_phrases,
    histograms,
    obedience_scores,
    read_real_frames,
    safety_score,
)
from blabberseg_ros.training.judging import judge, summary
from blabberseg_ros.training.lexicon import DEFAULT_COVERAGE, TERMS
from blabberseg_ros.training.views import LabelledView


def _view(group: str, labels: list[int]) -> LabelledView:
    """Return a view whose picture shows its labels, so that a predictor can know them."""
    array = np.array([labels], np.uint8)
    return LabelledView(group, np.stack([array] * 3, -1), array)


class Oracle:
    """Knows the classes of the pixels; obeys prompts unless told to be stubborn about one."""

    def __init__(self, stubborn: str = '', confusion: float = 0.1) -> None:
        self.stubborn, self.confusion = stubborn, confusion

    def probability(self, image: np.ndarray, prompts: PromptSet) -> np.ndarray:
        result = np.full(image.shape[:2], self.confusion, np.float32)
        for prompt in prompts.positive:
            for name in _classes_of(prompt):
                result[image[..., 0] == CLASS_IDS[name]] = 1 - self.confusion
        if self.stubborn:
            result[image[..., 0] == CLASS_IDS[self.stubborn]] = 1 - self.confusion
        return result


def _classes_of(prompt: str) -> tuple[str, ...]:
    if prompt in DEFAULT_COVERAGE:
        return DEFAULT_COVERAGE[prompt]
    return tuple(name for name, terms in TERMS.items()
                 if prompt in (terms.canonical, *terms.held_out))


ALL = list(CLASSES)


def test_a_perfect_model_scores_one() -> None:
    found = histograms(Oracle(), [_view('a', ALL)])
    threshold = choose_threshold(found)
    score = safety_score(found, threshold)
    assert 0.1 <= threshold < 0.9
    assert (score.safe_iou, score.unsafe_iou) == (1.0, 1.0)
    assert set(score.recall.values()) == {1.0}
    assert set(score.recall) == set(CLASS_IDS)


def test_ious_are_counted_by_hand() -> None:
    # Called safe: 6 6 4; truly safe: 6 6. Called unsafe: 1 1; truly unsafe: 1 1 4.
    found = histograms(Oracle(stubborn='vehicle'), [_view('a', [6, 6, 4, 1, 1])])
    score = safety_score(found, 0.5)
    assert score.safe_iou == pytest.approx(2 / 3)
    assert score.unsafe_iou == pytest.approx(2 / 3)
    assert score.recall == {'building': 1.0, 'vehicle': 0.0, 'grass': 1.0}


def test_unknown_pixels_are_left_out_and_groups_weigh_alike() -> None:
    predictor = Oracle(stubborn='vehicle')
    views = [_view('a', [6, 4, 0, 0]), _view('b', [6, 1] * 50)]
    score = safety_score(histograms(predictor, views), 0.5)
    assert score.safe_iou == pytest.approx((1 / 2 + 1) / 2)
    assert score.unsafe_iou == pytest.approx((0 + 1) / 2)


def test_the_threshold_separates_what_the_model_separates() -> None:
    class Faint:
        def probability(self, image, prompts):
            return np.where(np.isin(image[..., 0], list(SAFE)), 0.031, 0.029).astype(np.float32)

    found = histograms(Faint(), [_view('a', ALL)])
    assert choose_threshold(found) == pytest.approx(0.03)
    assert safety_score(found, 0.03).safe_iou == 1.0


def test_prompts_of_a_move_differ_in_one_polarity_alone() -> None:
    before, after = (class_prompts('road', 'busy street', positive) for positive in (True, False))
    assert set(before.positive) - set(after.positive) == {'busy street'}
    assert sorted(before.texts) == sorted(after.texts)
    assert len(before) == len(CLASS_IDS)
    safe = class_prompts('grass', 'lawn', False)
    assert 'lawn' in safe.negative
    assert TERMS['soil'].canonical in safe.positive


def test_obedience_tells_the_obedient_from_the_stubborn() -> None:
    views = [_view('a', ALL)]
    for phrases in (canonical_phrases(), held_out_phrases()):
        scores = obedience_scores(Oracle(stubborn='water'), views, (0.5, 0.3), phrases)
        assert {score.name for score in scores} == set(CLASS_IDS)
        for score in scores:
            assert [flip.threshold for flip in score.flips] == [0.5, 0.3]
            assert {flip.flipped for flip in score.flips} == {
                0.0 if score.name == 'water' else 1.0}
            assert (score.after < score.before) == (score.name != 'water')
            assert {flip.safe_before for flip in score.flips} == {1.0}


def test_judging_covers_all_kinds_of_views() -> None:
    views = {'validation': [_view('v', ALL)], 'test': [_view('t', ALL)],
             'held_out': [_view('h', ALL)], 'real': [_view('1', ALL), _view('2', ALL)]}
    metrics = judge(Oracle(), views, 'an oracle')
    assert set(metrics['safety']) == set(views)
    assert len(metrics['obedience']) == 11
    assert len(metrics['unseen_phrases']) == 33
    assert 'IoU safe 1.000' in summary(metrics)


def test_real_frames_are_grouped_by_video(tmp_path) -> None:
    for folder in ('frames_dev', 'labels_dev'):
        (tmp_path / folder).mkdir()
    for name in ('v1_f1', 'v1_f2', 'v2_f1'):
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[..., 2] = 200  # red, in OpenCV's order
        cv2.imwrite(str(tmp_path / 'frames_dev' / f'{name}.png'), picture)
        cv2.imwrite(str(tmp_path / 'labels_dev' / f'{name}.png'), np.full((4, 6), 6, np.uint8))
    views = read_real_frames(tmp_path)
    assert [view.group for view in views] == ['v1', 'v1', 'v2']
    assert views[0].rgb[0, 0].tolist() == [200, 0, 0]
    (tmp_path / 'frames_dev' / 'v2_f1.png').unlink()
    with pytest.raises(ImageError, match='v2_f1'):
        read_real_frames(tmp_path)


def test_a_folder_without_frames_is_refused(tmp_path) -> None:
    with pytest.raises(ImageError, match='labels_dev'):
        read_real_frames(tmp_path)


def test_default_prompts_put_every_class_on_the_side_of_its_safety() -> None:
    prompts = default_prompts()
    positive = {name for text in prompts.positive for name in DEFAULT_COVERAGE[text]}
    assert {CLASS_IDS[name] for name in positive} == set(SAFE)
