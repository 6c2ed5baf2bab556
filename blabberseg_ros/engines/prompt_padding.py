# SPDX-License-Identifier: Apache-2.0
"""Few sizes for many numbers of prompts, for an engine that is built for each set of shapes.

Inputs whose first axis counts prompts are filled up to one of a few lengths, so that an operator
who adds a prompt in flight need not wait for another build. The filling changes no answer: what
runs a prompt at a time is cut off again, a filled row of `logits` is minus infinity, so that its
share of a softmax is nothing, and a negative weight in `positive` marks the same for stages that
compute the logits themselves.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import Any

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.errors import EngineError

# Thirteen are DOVESEI's prompts, which nothing shall slow down. More than the last are not padded.
LENGTHS = (1, 2, 3, 4, 6, 8, 10, 13, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_AXIS = 'prompts'
# What stands behind the last prompt; zero where nothing is said.
_FILLINGS = {'positive': -1.0, 'logits': -math.inf}


def counts_prompts(spec: TensorSpec) -> bool:
    """Return whether the first axis of a tensor counts prompts."""
    return spec.shape[:1] == (_AXIS,)


def padded_length(count: int) -> int:
    """Return the length that a number of prompts, at least 1, is filled up to."""
    index = bisect_left(LENGTHS, count)
    return LENGTHS[index] if index < len(LENGTHS) else count


def fewest_padded_alike(count: int) -> int:
    """Return the smallest number of prompts that is filled up to the same length as this one."""
    index = bisect_left(LENGTHS, count)
    if index == len(LENGTHS):
        return count
    return LENGTHS[index - 1] + 1 if index else 1


def filling(name: str) -> float:
    """Return what an input holds behind the last prompt."""
    return _FILLINGS.get(name, 0.0)


def prompt_count(counting: Collection[str], feeds: Mapping[str, Any]) -> int:
    """Return the number of prompts in some inputs; 0 if none of them counts prompts.

    Args:
        counting: names of the inputs whose first axis counts prompts.
        feeds: arrays or tensors, by name.

    Raises:
        EngineError: the inputs differ in it, which padding would hide, or there are none.
    """
    counts = {feeds[name].shape[0] for name in counting}
    if len(counts) > 1 or 0 in counts:
        given = ', '.join(f'{name} {tuple(value.shape)}' for name, value in feeds.items())
        raise EngineError(f'the inputs are not of one number of prompts, at least 1: {given}')
    return max(counts, default=0)


def padded_shapes(counting: Collection[str], feeds: Mapping[str, Any],
                  count: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of some inputs with padding.

    Args:
        counting: names of the inputs whose first axis counts prompts.
        feeds: arrays or tensors, by name.
        count: of the prompts in them.
    """
    length = padded_length(count)
    return {name: (length, *value.shape[1:]) if name in counting else tuple(value.shape)
            for name, value in feeds.items()}
