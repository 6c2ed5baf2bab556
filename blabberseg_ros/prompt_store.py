# SPDX-License-Identifier: Apache-2.0
"""Prompt codes that survive a restart: one small safetensors file a prompt.

With all its prompts in the store a robot flies without ever loading the text tower.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np

from blabberseg_ros.atomic import write_bytes
from blabberseg_ros.backends.values import PromptCode

_LOG = logging.getLogger(__name__)


class PromptStore:
    """Codes on disk, keyed by the model's fingerprint and the prompt's text.

    A file that is torn, foreign or altered counts as absent: the prompt is encoded again.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Use a folder of this model's own under `folder`; it is made at the first write."""
        self._folder = folder / 'prompts' / fingerprint
        self._fingerprint = fingerprint
        self._writable = True

    def load(self, text: str) -> PromptCode | None:
        """Return the code of a text, or None if it is not stored whole."""
        from safetensors import SafetensorError

        path = self._path(text)
        try:
            return self._parse(path.read_bytes(), text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            _LOG.warning('The stored prompt %s is unusable (%s); encoding it again', path, error)
            return None

    def save(self, text: str, code: PromptCode) -> None:
        """Store a code; a full or read-only disk is reported once and changes nothing else."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(array) for name, array in code.arrays}
        metadata = {'text': text, 'fingerprint': self._fingerprint, 'sha256': _digest(arrays)}
        try:
            write_bytes(self._path(text), save(arrays, metadata))
        except OSError as error:
            if self._writable:
                _LOG.warning('Prompts cannot be stored in %s (%s); they will be encoded again '
                             'after a restart', self._folder, error)
            self._writable = False

    def _path(self, text: str) -> Path:
        return self._folder / f'{hashlib.sha256(text.encode()).hexdigest()}.safetensors'

    def _parse(self, data: bytes, text: str) -> PromptCode:
        import json

        from safetensors.numpy import load

        arrays = load(data)
        header_bytes = int.from_bytes(data[:8], 'little')
        metadata = json.loads(data[8:8 + header_bytes]).get('__metadata__', {})
        expected = {'text': text, 'fingerprint': self._fingerprint, 'sha256': _digest(arrays)}
        if metadata != expected:
            raise ValueError('its checksum or its key does not match')
        return PromptCode(tuple(sorted(arrays.items())))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
