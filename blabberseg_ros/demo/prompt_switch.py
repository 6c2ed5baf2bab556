# SPDX-License-Identifier: Apache-2.0
"""Which prompt is the vehicle about to land on? Ask for each alone, then make that one unsafe."""

import numpy as np

from blabberseg_ros.demo.planner import Spot, Viewpoint
from blabberseg_ros.prompts import PromptSet

# Ground around the spot that is looked at.
_WINDOW_M = 3.0


class PromptSwitch:
    """Finds the positive prompt that explains a spot, with one question per prompt.

    All questions are about one frame, so that only the first costs a run of the image encoder.

    Args:
        prompts: the set in use, with at least two positive prompts.
        view: where the frame was taken.
        spot: the place in question.
    """

    def __init__(self, prompts: PromptSet, view: Viewpoint, spot: Spot) -> None:
        """Prepare the questions."""
        self._prompts = prompts
        self._view = view
        self._spot = spot
        self._shares: list[float] = []

    @property
    def question(self) -> PromptSet | None:
        """Return the next set to ask with: one positive prompt, all others negative."""
        asked = len(self._shares)
        if asked == len(self._prompts.positive):
            return None
        return self._with(asked, alone=True)

    def answer(self, mask: np.ndarray) -> None:
        """Take the mask that answers the question; an empty one counts for nothing."""
        window = _window(mask, self._view, self._spot)
        self._shares.append(float((window > 0).mean()) if window.size else 0.0)

    @property
    def verdict(self) -> PromptSet | None:
        """Return the set with the prompt that explains the spot made negative, once known."""
        if self.question is not None:
            return None
        return self._with(int(np.argmax(self._shares)), alone=False)

    def _with(self, chosen: int, alone: bool) -> PromptSet:
        """Return the set with one prompt as the only positive, or with it made negative."""
        positive = self._prompts.positive
        one, others = positive[chosen], positive[:chosen] + positive[chosen + 1:]
        if alone:
            return PromptSet((one,), self._prompts.negative + others, self._prompts.template)
        return PromptSet(others, (*self._prompts.negative, one), self._prompts.template)


def _window(mask: np.ndarray, view: Viewpoint, spot: Spot) -> np.ndarray:
    """Return the part of a mask that shows the ground around a spot."""
    if not mask.size:
        return mask
    height_px, width_px = mask.shape
    per_m = view.focal * width_px / view.height_m
    column = width_px / 2 + (spot.x_m - view.x_m) * per_m
    row = height_px / 2 - (spot.y_m - view.y_m) * per_m
    reach = max(1.0, _WINDOW_M * per_m)
    left, right = (int(np.clip(column + side, 0, width_px)) for side in (-reach, reach))
    top, bottom = (int(np.clip(row + side, 0, height_px)) for side in (-reach, reach))
    return mask[top:bottom, left:right]
