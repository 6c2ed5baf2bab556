# SPDX-License-Identifier: Apache-2.0
"""Trained weights on disk, and the bundle made from them."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from blabberseg_ros.atomic import write_atomically
from blabberseg_ros.errors import BundleError, ParameterError
from blabberseg_ros.training.config import TrainConfig, config_from_dict
from blabberseg_ros.training.family import family_class

_CONFIG = 'config'


def rounded_to_half(model: nn.Module) -> nn.Module:
    """Return a copy whose matrices hold what 16-bit storage keeps; vectors stay exact."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.state_dict().values():
            weight.copy_(_stored(weight))
    return model


def save_checkpoint(model: nn.Module, config: TrainConfig, path: Path) -> None:
    """Write a finished network in 16 bits (vectors in 32), with the configuration that gave it."""
    state = {name: _stored(value).cpu().contiguous()
             for name, value in model.state_dict().items()}
    metadata = {_CONFIG: json.dumps(asdict(config))}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata))


def load_checkpoint(path: Path) -> tuple[nn.Module, TrainConfig]:
    """Read a network and its configuration.

    Raises:
        BundleError: the file is missing, damaged, or not a checkpoint of `train-demo`.
    """
    try:
        with safe_open(path, 'pt') as stream:
            config = config_from_dict(json.loads(stream.metadata()[_CONFIG]), str(path))
            state = {name: stream.get_tensor(name) for name in list(stream.keys())}
        model = family_class(config.family).create(config.model)
        model.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError,
            ParameterError) as error:
        raise BundleError(
            f'{path} is not a checkpoint of blabberseg train-demo: {error}') from error
    return model.eval(), config


def _stored(weight: Tensor) -> Tensor:
    """Return a weight in the type it is stored in."""
    return weight.half() if weight.is_floating_point() and weight.ndim > 1 else weight
