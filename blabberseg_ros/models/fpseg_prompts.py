# SPDX-License-Identifier: Apache-2.0
"""Classes as files: the tokens that make FPSeg's decoder look for one class.

A bundle holds its own classes in `prompts.safetensors`; more can be added from other files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from blabberseg_ros.atomic import write_atomically
from blabberseg_ros.errors import BundleError
from blabberseg_ros.labels import plain

PROMPTS = 'prompts.safetensors'
_FORMAT = 'fpseg-prompts/1'


@dataclass(frozen=True)
class ClassPrompt:
    """One class, as the decoder is told of it.

    Attributes:
        name: of the class.
        tokens: float32 [P, width], learned; classes may differ in P.
        dense: float32 [width], added to each cell of the embedding (SAM's `no_mask_embed`). It is
            tuned together with the tokens, so it travels with them.
    """

    name: str
    tokens: np.ndarray
    dense: np.ndarray


def write_prompts(path: Path, prompts: Sequence[ClassPrompt]) -> None:
    """Write classes to a file, atomically.

    Args:
        path: of the file, usually `*.safetensors`.
        prompts: at least one, with different names.

    Raises:
        BundleError: two classes have the same name.
    """
    check_names([prompt.name for prompt in prompts], str(path))
    tensors = {}
    for index, prompt in enumerate(prompts):
        tensors[f'tokens.{index}'] = np.ascontiguousarray(prompt.tokens, np.float32)
        tensors[f'dense.{index}'] = np.ascontiguousarray(prompt.dense, np.float32)
    metadata = {'format': _FORMAT,
                'class_names': json.dumps([prompt.name for prompt in prompts])}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_prompts(path: Path) -> tuple[ClassPrompt, ...]:
    """Read the classes of a file, in its order.

    Raises:
        BundleError: missing, damaged or not such a file.
    """
    try:
        with safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
            if metadata.get('format') != _FORMAT:
                raise BundleError(
                    f'{path} is not a file of FPSeg prompts ({_FORMAT}); give one that '
                    '`blabberseg fpseg tune` wrote, or the prompts.safetensors of a bundle')
            names = json.loads(metadata['class_names'])
            prompts = tuple(
                ClassPrompt(name, file.get_tensor(f'tokens.{index}'),
                            file.get_tensor(f'dense.{index}'))
                for index, name in enumerate(names))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BundleError(f'the file of prompts {path} cannot be read ({error}); copy it again or '
                          'write it again') from error
    check_names([prompt.name for prompt in prompts], str(path))
    for prompt in prompts:
        if prompt.tokens.ndim != 2 or prompt.dense.shape != prompt.tokens.shape[1:]:
            raise BundleError(f'{path}: the prompt of {prompt.name!r} has the shapes '
                              f'{prompt.tokens.shape} and {prompt.dense.shape}; it is damaged')
    return prompts


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse class names that are blank or that a prompt could not tell apart.

    Raises:
        BundleError: naming the class.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = plain(name)
        if not key.strip():
            raise BundleError(f'{where}: a class has no name')
        if key in seen:
            raise BundleError(f'{where}: the class {name!r} is there twice, the other is '
                              f'{seen[key]!r}, and a prompt would mean both; rename one of them')
        seen[key] = name
    if not names:
        raise BundleError(f'{where}: there is no class')
