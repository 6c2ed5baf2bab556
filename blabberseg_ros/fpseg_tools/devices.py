# SPDX-License-Identifier: Apache-2.0
"""The torch device that a tool's configuration names."""

import torch

from blabberseg_ros.errors import ParameterError


def device_named(name: str) -> torch.device:
    """Return the device; `auto` takes the GPU if there is one.

    Raises:
        ParameterError: there is no such device here.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ParameterError(f'{name!r} is not a torch device; use auto, cpu or cuda') from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ParameterError('device is cuda, and torch finds no GPU here; use cpu, or check the '
                             'driver with `blabberseg doctor`')
    return device
