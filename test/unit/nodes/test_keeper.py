# SPDX-License-Identifier: Apache-2.0
"""A model that keeps failing: opened again first, then on another engine."""

import numpy as np
import pytest

from blabberseg_ros.errors import EngineError, NotFiniteError
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.nodes import keeper
from blabberseg_ros.nodes.keeper import REOPEN_AFTER_FAILURES, ModelKeeper
from blabberseg_ros.prompts import PromptSet

IMAGE = np.zeros((4, 4, 3), np.uint8)
PROMPTS = PromptSet(('a',), ('b',))


class Puppet:
    """A segmenter with engines in the order of `auto`, some of which answer NaN."""

    def __init__(self, engines, broken):
        self.engines = engines
        self.broken = broken
        self.engine_name = ''

    def avoid(self, engines):
        self.engines = sorted(self.engines, key=lambda name: name in engines)

    def activate(self):
        self.engine_name = self.engines[0]

    def deactivate(self):
        self.engine_name = ''

    def forget(self):
        pass

    def encode(self, prompts):
        pass

    def segment(self, image, prompts, fusion, *, with_probability, cancelled):
        if self.engine_name in self.broken:
            raise NotFiniteError(f'{self.engine_name} answered NaN')
        return Heatmap(np.zeros((4, 4), np.uint8), None, 0.5, True)


@pytest.fixture
def kept(monkeypatch):
    """Return a keeper, the set of broken engines, and a function that counts failing images."""
    monkeypatch.setattr(keeper, 'REOPEN_INTERVAL_S', 0.0)
    broken = {'fast'}
    warnings = []
    kept = ModelKeeper(warnings.append)
    kept.warnings = warnings

    def open_on(*engines):
        kept.open(lambda: Puppet(list(engines), broken))
        kept.activate()

    def failing_images(limit):
        for count in range(limit):
            try:
                kept.segment(IMAGE, PROMPTS, FusionOptions(), with_probability=False,
                             cancelled=lambda: False)
                return count
            except EngineError:
                continue
        return limit

    return kept, broken, open_on, failing_images


def test_a_model_that_fails_after_it_was_opened_again_goes_on_on_the_next_engine(kept):
    model, _, open_on, failing_images = kept
    open_on('fast', 'slow')
    assert failing_images(20) == REOPEN_AFTER_FAILURES + 1
    assert model.segmenter.engine_name == 'slow'
    assert 'not on fast' in model.warnings[-1]


def test_a_device_that_recovers_keeps_its_engine(kept):
    model, broken, open_on, failing_images = kept
    open_on('fast', 'slow')
    assert failing_images(REOPEN_AFTER_FAILURES) == REOPEN_AFTER_FAILURES
    broken.clear()
    assert failing_images(1) == 0
    broken.add('fast')
    # The trial is over: again three in a row, and a second chance.
    assert failing_images(REOPEN_AFTER_FAILURES) == REOPEN_AFTER_FAILURES
    assert model.segmenter.engine_name == 'fast'


def test_the_only_engine_is_opened_again_and_again(kept):
    model, broken, open_on, failing_images = kept
    open_on('fast')
    assert failing_images(8) == 8
    assert model.segmenter.engine_name == 'fast'
    broken.clear()
    assert failing_images(1) == 0


def test_a_model_that_is_opened_anew_by_its_user_avoids_nothing(kept):
    model, broken, open_on, failing_images = kept
    open_on('fast', 'slow')
    failing_images(20)
    open_on('fast', 'slow')
    broken.clear()
    assert failing_images(1) == 0
    assert model.segmenter.engine_name == 'fast'
