# SPDX-License-Identifier: Apache-2.0
"""The network of an FPSeg bundle, in torch."""

import torch

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.models import sam_vit, tiny_vit
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import FpSegConfig
from blabberseg_ros.models.loading import load_weights


def load_fpseg(bundle: Bundle) -> FpSeg:
    """Return the network of a bundle in evaluation mode, float32, on the CPU.

    Raises:
        BundleError: the weights are not those of the architecture in the manifest.
    """
    config = FpSegConfig.from_dict(bundle.manifest.architecture)
    model = load_weights(bundle, lambda: FpSeg(config, norms=False))
    make_tables(model)
    return model


def make_tables(model: FpSeg) -> None:
    """Fill in what the constructors compute and no file holds: the tables of distances."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, tiny_vit.WindowAttention):
                window = int(module.attention_biases.shape[1] ** 0.5)
                module.index = tiny_vit.distance_index(window)
            elif isinstance(module, sam_vit.Attention):
                module.offsets = sam_vit.offset_index(module.side)
                module.places = sam_vit.one_hot_places(module.side)
