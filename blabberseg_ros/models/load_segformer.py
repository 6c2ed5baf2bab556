# SPDX-License-Identifier: Apache-2.0
"""The network of a Segformer bundle, in torch."""

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.models.loading import load_weights
from blabberseg_ros.models.segformer import Segformer
from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.models.text_tower import causal_mask


def load_segformer(bundle: Bundle) -> Segformer:
    """Return the network of a bundle in evaluation mode, float32, on the CPU.

    Raises:
        BundleError: the weights are not those of the architecture in the manifest.
    """
    config = SegformerConfig.from_dict(bundle.manifest.architecture)
    model = load_weights(bundle, lambda: Segformer(config))
    if config.reads_text:
        # Made in the constructor and not stored.
        model.text.causal_mask = causal_mask(config.context_length)
    return model
