# SPDX-License-Identifier: Apache-2.0
"""Weights of a bundle into a network, strict on every key."""

from collections.abc import Callable
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from blabberseg_ros.bundle import WEIGHTS, Bundle
from blabberseg_ros.errors import BundleError

Network = TypeVar('Network', bound=nn.Module)


def load_weights(bundle: Bundle, make: Callable[[], Network]) -> Network:
    """Make a network and give it a bundle's weights, in float32 on the CPU.

    Args:
        bundle: the model.
        make: of the network, without weights. What it makes besides parameters and stored buffers
            has no values (it is made on torch's `meta` device) and is for the caller to fill in.

    Returns:
        The network in evaluation mode.

    Raises:
        BundleError: the weights are not those of the network.
    """
    # No memory is filled with initial weights that are overwritten at once.
    with torch.device('meta'):
        model = make()
    path = bundle.folder / WEIGHTS
    state = {name: weight.float() if weight.is_floating_point() else weight
             for name, weight in load_file(path).items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise BundleError(f'{path} does not hold the weights of the architecture in its manifest '
                          f'({error}); import the bundle again') from error
    return model.requires_grad_(False).eval()
