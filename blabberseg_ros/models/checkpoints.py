# SPDX-License-Identifier: Apache-2.0
"""Reading of other people's checkpoints: tensors only, never code."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from blabberseg_ros.errors import BundleError

State = dict[str, Tensor]
_LFS_POINTER = b'version https://git-lfs'


class Ignored:
    """What stands for a Python object in a checkpoint: it takes everything and does nothing."""

    def __new__(cls, *_: Any) -> 'Ignored':
        """Take what the object was made of."""
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Take what the object held."""


def read_state(path: Path, *, ignore_objects: bool = False) -> State:
    """Read the tensors of a checkpoint file.

    Args:
        path: `.safetensors`, a file of `torch.save` (of tensors, perhaps under `state_dict`), or
            a TorchScript archive, in which OpenAI published CLIP.
        ignore_objects: read past Python objects beside the tensors, as training frameworks leave
            them, without making them; they are refused else.

    Returns:
        Names to tensors on the CPU.

    Raises:
        BundleError: missing, damaged, or holding anything but tensors.
    """
    try:
        with open(path, 'rb') as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError as error:
        raise BundleError(f'the checkpoint {path} cannot be read: {error}') from error
    if start == _LFS_POINTER:
        raise BundleError(f'{path} is a Git LFS pointer, not the weights themselves; run '
                          '`git lfs pull` where it was cloned, or download the file again')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    content = _read_torch(path, ignore_objects)
    if isinstance(content, dict) and isinstance(content.get('state_dict'), dict):
        content = content['state_dict']
    if not isinstance(content, dict) or not content or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise BundleError(f'{path} holds something other than named tensors; give a state dict, '
                          'as `torch.save(model.state_dict(), path)` writes it')
    # Left behind by data-parallel training.
    if all(key.startswith('module.') for key in content):
        content = {key.removeprefix('module.'): value for key, value in content.items()}
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleError: missing, damaged or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise BundleError(f'{path} cannot be read: {error}. Download it again') from error
    if not isinstance(content, dict):
        raise BundleError(f'{path} is not a configuration; download it again')
    return content


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path, ignore_objects: bool) -> Any:
    """Read a file of `torch.save` or TorchScript without running anything that lies in it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch reads tensors without comparing checksums.
                broken = archive.testzip()
                names = archive.namelist()
            if broken is not None:
                raise BundleError(f'{path} is damaged in {broken}; download it again')
            # Only TorchScript archives have it. Its code is loaded as data and not called.
            if any(name.endswith('/constants.pkl') for name in names):
                return dict(torch.jit.load(path, map_location='cpu').state_dict())
            if ignore_objects:
                return _read_past_objects(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'global' in str(error).lower():
            raise BundleError(
                f'{path} holds Python objects besides tensors. Loading those can run any code, so '
                'it is refused; get the file as safetensors, or save its state dict alone') \
                from error
        raise _damaged(path, error) from error
    except BundleError:
        raise
    except Exception as error:  # torch's readers raise anything on damaged bytes
        raise _damaged(path, error) from error


def _read_past_objects(path: Path) -> Any:
    """Read a file of `torch.save` with `Ignored` in the place of every foreign class.

    Torch's reader of tensors looks the names of classes up in a list; here each unknown name leads
    to `Ignored`. Nothing is imported, and no code of the file's choice is called.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    with torch.serialization.safe_globals([(Ignored, name) for name in names]):
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)


def _damaged(path: Path, error: Exception) -> BundleError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return BundleError(f'{path} is damaged or is not a checkpoint ({reason}); download it again '
                       'and compare its SHA-256')
