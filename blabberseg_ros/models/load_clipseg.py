# SPDX-License-Identifier: Apache-2.0
"""The network of a bundle, in torch."""

import torch
from safetensors.torch import load_file

from blabberseg_ros.bundle import WEIGHTS, Bundle
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig


def load_clipseg(bundle: Bundle) -> ClipSeg:
    """Return the network of a bundle in evaluation mode, float32, on the CPU.

    Raises:
        BundleError: the weights are not those of the architecture in the manifest.
    """
    config = ClipSegConfig.from_dict(bundle.manifest.architecture)
    # No memory is filled with initial weights that are overwritten at once.
    with torch.device('meta'):
        model = ClipSeg(config)
    path = bundle.folder / WEIGHTS
    state = {name: weight.float() for name, weight in load_file(path).items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise BundleError(f'{path} does not hold the weights of the architecture in its manifest '
                          f'({error}); import the bundle again') from error
    # Made in the constructor and not stored: a mask over the text's positions.
    length = config.context_length
    model.causal_mask = torch.full((length, length), float('-inf')).triu_(1)
    return model.requires_grad_(False).eval()
