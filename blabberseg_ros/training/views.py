# SPDX-License-Identifier: Apache-2.0
"""Pictures with ground truth, rendered or real."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelledView:
    """A picture with its ground truth.

    Attributes:
        group: pictures of one group are counted together before groups are averaged.
        rgb: uint8 [H, W, 3].
        labels: uint8 [H, W], class ids; 0 is unknown.
        altitude_m: of the camera; 0 if unknown.
    """

    group: str
    rgb: np.ndarray
    labels: np.ndarray
    altitude_m: float = 0.0
