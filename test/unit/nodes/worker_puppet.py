# SPDX-License-Identifier: Apache-2.0
"""A segmenter that is a puppet, and what the worker is given to do with it."""

import threading
from collections.abc import Callable

import numpy as np

from blabberseg_ros.errors import Cancelled
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.nodes.work import Frame
from blabberseg_ros.prompt_cache import PromptReport
from blabberseg_ros.prompts import PromptSet

WAIT_S = 30.0
OLD = PromptSet(('old',), ('bad',))
NEW = PromptSet(('new a', 'new b'), ('new c', 'new d'))
FUSION = FusionOptions()


class Puppet:
    """A segmenter that notes what it is asked and can be held up or made to fail."""

    engine_name = 'puppet'

    def __init__(self):
        self.log = []
        self.known = set()
        self.failures = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def avoid(self, engines):
        self.log.append(f'avoid {sorted(engines)}')

    def activate(self):
        self.log.append('activate')

    def deactivate(self):
        self.log.append('deactivate')

    def forget(self):
        self.log.append('forget')

    def encode(self, prompts):
        new = set(prompts.texts) - self.known
        self.known |= new
        self.log.append(f'encode {len(new)}')
        return PromptReport(len(new), len(prompts) - len(new), (), (), (), (), 1.0)

    def segment(self, image, prompts, fusion, *, with_probability, cancelled):
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if cancelled():
            self.log.append('cancelled')
            raise Cancelled('given up')
        self.log.append(f'segment {image[0, 0, 0]} {prompts.positive[0]}')
        if self.failures:
            raise self.failures.pop(0)
        return Heatmap(np.zeros(image.shape[:2], np.uint8),
                       np.zeros(image.shape[:2], np.float32), 0.5, True)

    def hold(self):
        """Stop the next call to `segment` until the gate is set."""
        self.gate.clear()
        self.entered.clear()


def image(number=0):
    return np.full((4, 4, 3), number, np.uint8)


def hold(worker, puppet):
    """Keep the worker busy with a request; return its future."""
    puppet.hold()
    future = worker.segment(image(99), None, FUSION, WAIT_S)
    assert puppet.entered.wait(WAIT_S)
    return future


def frame(number, delivered: list, failed: list | None = None, load: Callable | None = None):
    return Frame(load or (lambda: image(number)), FUSION, False, delivered.append,
                 (failed if failed is not None else delivered).append)
