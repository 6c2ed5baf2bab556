# SPDX-License-Identifier: Apache-2.0
"""Where a tool takes its FPSeg network from, and how a training run keeps what it made."""

import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blabberseg_ros.atomic import write_atomically
from blabberseg_ros.backends.fpseg_fit import matrices_in
from blabberseg_ros.bundle import find_bundle, load_bundle
from blabberseg_ros.errors import BundleError, ParameterError
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import FpSegConfig
from blabberseg_ros.models.importing import Source
from blabberseg_ros.models.stages import resize

_FORMAT = 'fpseg-network/1'
_CHECKPOINTS = ('.pt', '.pth')
_PROMPTS = 'prompt_encoder.prompt_embeddings'
_UNTUNED = ('untuned',)
FAMILY = 'fpseg'
# The decoder keeps all image tokens of each class: memory, and no speed beyond a few.
CLASSES_AT_ONCE = 8


def check_source(source: str) -> None:
    """Refuse a source that is not there, before any work is done.

    Raises:
        BundleError: there is no such file or bundle, or it is of another family.
    """
    if Path(source).suffix in (*_CHECKPOINTS, '.safetensors'):
        if not Path(source).expanduser().is_file():
            raise BundleError(f'there is no checkpoint {source}; correct the path')
        return
    family = load_bundle(find_bundle(source), verify=False).manifest.family
    if family != FAMILY:
        raise BundleError(f'the bundle {source} is of the family {family!r}; these tools are for '
                          f'{FAMILY!r}')


def open_network(source: str, *, attention_bias: str | None = None, fit: str | None = None,
                 input_size_px: int | None = None) -> FpSeg:
    """Read a network, on the CPU and in evaluation mode.

    Args:
        source: name or folder of a bundle; SAM, MobileSAM or FPSeg checkpoint (.pt, .pth); or a
            .safetensors file of `fpseg tune` or `fpseg distil`.
        attention_bias: `live` or `zero`, for checkpoints that do not say (.pt, .pth).
        fit: `squash` or `letterbox`, for such checkpoints.
        input_size_px: side of the input, for such checkpoints.

    Raises:
        BundleError: it cannot be used.
        ParameterError: an option contradicts what the network says of itself.
    """
    check_source(source)
    path = Path(source).expanduser()
    if path.suffix in _CHECKPOINTS:
        from blabberseg_ros.models.import_fpseg import import_checkpoint

        # SAM's and MobileSAM's files hold no classes; tuning names them.
        tuned = _PROMPTS in Source.look(path).keys
        imported = import_checkpoint(path, classes=None if tuned else _UNTUNED,
                                     attention_bias=attention_bias, fit=fit or 'squash',
                                     input_size_px=input_size_px)
        return cast(FpSeg, imported.model)
    if path.suffix == '.safetensors':
        model = load_network(path)
    else:
        from blabberseg_ros.models.load_fpseg import load_fpseg

        model = load_fpseg(load_bundle(find_bundle(source)))
    for name, value in (('attention_bias', attention_bias), ('fit', fit),
                        ('input_size_px', input_size_px)):
        if value not in (None, getattr(model.config, name)):
            raise ParameterError(f'{source} has {name} {getattr(model.config, name)!r}, and '
                                 f'{value!r} was asked for; leave the option out')
    return model


def save_network(model: FpSeg, path: Path) -> None:
    """Write a network with its configuration, atomically."""
    state = {name: value.detach().cpu().contiguous().clone()
             for name, value in model.state_dict().items()}
    metadata = {'format': _FORMAT, 'config': json.dumps(model.config.to_dict())}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata))


def load_network(path: Path) -> FpSeg:
    """Read what `save_network` wrote.

    Raises:
        BundleError: it is absent, damaged or of another kind.
    """
    try:
        with safe_open(path, 'pt') as stream:
            metadata = stream.metadata() or {}
            if metadata.get('format') != _FORMAT:
                raise BundleError(f'{path} is not a network that `blabberseg fpseg` wrote')
            config = FpSegConfig.from_dict(json.loads(metadata['config']))
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        # A network that came from a bundle has its batch norms folded.
        model = FpSeg(config, norms=any(name.endswith('running_mean') for name in state))
        model.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise BundleError(f'{path} cannot be read as a network ({error}); write it again') \
            from error
    return model.requires_grad_(False).eval()


def encoder_key(model: FpSeg) -> str:
    """Return a hash of all that decides an embedding: encoder weights and preprocessing."""
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps(
        [config[name] for name in ('encoder', 'attention_bias', 'fit', 'input_size_px', 'mean',
                                   'std')]).encode())
    for name, value in sorted(model.image_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def decode_all(model: FpSeg, embedding: np.ndarray | Tensor) -> Tensor:
    """Return the logits of all classes, float32 [N, s, s], from an embedding [C, g, g]."""
    tokens = model.prompt_encoder.prompt_embeddings
    code = torch.as_tensor(embedding).to(tokens)[None]
    return torch.cat([model.decode(code, group) for group in tokens.split(CLASSES_AT_ONCE)])


class Preprocessor:
    """Camera images to the encoder's input, as the node does it."""

    def __init__(self, config: FpSegConfig, device: torch.device) -> None:
        """Keep what does not change."""
        self._config = config
        self._device = device
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None]
                                 for values in (config.mean, config.std))

    def __call__(self, image: np.ndarray) -> Tensor:
        """Resize, normalise and pad: uint8 [H, W, 3] to float32 [3, S, S]."""
        config = self._config
        height, width = image.shape[:2]
        rows, cols = (torch.tensor(matrix, device=self._device) for matrix in matrices_in(
            height, width, config.input_size_px, config.fit))
        pixels = resize(torch.from_numpy(image).to(self._device).permute(2, 0, 1).float(),
                        rows, cols)
        # SAM pads after the normalisation: 1 inside the image, 0 outside.
        inside = rows.sum(1, keepdim=True) * cols.sum(0, keepdim=True)
        return (pixels / 255 - self._mean) / self._std * inside
