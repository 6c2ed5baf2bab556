# SPDX-License-Identifier: Apache-2.0
"""A bundle on its engine, as a predictor that can be judged. Needs no torch."""

import numpy as np

from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.segmenter import Segmenter
from blabberseg_ros.training.config import CLOSED_FAMILIES
from blabberseg_ros.training.labels import as_labels

_NO_BLUR = FusionOptions(blur_kernel_size=1, dynamic_threshold=0.0)


class BundlePredictor:
    """A bundle, run as the node runs it."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Take an active segmenter."""
        self._segmenter = segmenter
        self.reads_words = segmenter.bundle.manifest.family not in CLOSED_FAMILIES

    def probability(self, image: np.ndarray, prompts: PromptSet) -> np.ndarray:
        """Return the probability of safe ground, float32 [H, W].

        A family that reads no words is asked for the classes that the prompts stand for.
        """
        if not self.reads_words:
            prompts = as_labels(prompts)
        probability = self._segmenter.segment(image, prompts, _NO_BLUR).probability
        if probability is None:
            raise RuntimeError('the segmenter kept the probability to itself')
        return probability
