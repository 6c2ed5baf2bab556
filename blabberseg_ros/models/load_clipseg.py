# SPDX-License-Identifier: Apache-2.0
"""The network of a CLIPSeg bundle, in torch."""

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.loading import load_weights
from blabberseg_ros.models.text_tower import causal_mask


def load_clipseg(bundle: Bundle) -> ClipSeg:
    """Return the network of a bundle in evaluation mode, float32, on the CPU.

    Raises:
        BundleError: the weights are not those of the architecture in the manifest.
    """
    config = ClipSegConfig.from_dict(bundle.manifest.architecture)
    model = load_weights(bundle, lambda: ClipSeg(config))
    # Made in the constructor and not stored: a mask over the text's positions.
    model.causal_mask = causal_mask(config.context_length)
    return model
