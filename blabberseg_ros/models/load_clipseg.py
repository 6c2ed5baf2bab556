# SPDX-License-Identifier: Apache-2.0
"""The network of a CLIPSeg bundle, in torch."""

import torch

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.loading import load_weights


def load_clipseg(bundle: Bundle) -> ClipSeg:
    """Return the network of a bundle in evaluation mode, float32, on the CPU.

    Raises:
        BundleError: the weights are not those of the architecture in the manifest.
    """
    config = ClipSegConfig.from_dict(bundle.manifest.architecture)
    model = load_weights(bundle, lambda: ClipSeg(config))
    # Made in the constructor and not stored: a mask over the text's positions.
    length = config.context_length
    model.causal_mask = torch.full((length, length), float('-inf')).triu_(1)
    return model
