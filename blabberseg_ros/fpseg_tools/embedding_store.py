# SPDX-License-Identifier: Apache-2.0
"""Image embeddings on disk: shards that are whole or absent, and a header that says whose.

- FOLDER/SPLIT/store.json: encoder, input, frames
- FOLDER/SPLIT/shard-00000.safetensors: embeddings of the first frames, by stem
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from blabberseg_ros.atomic import write_atomically, write_text
from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.sole_writer import sole_writer

HEADER = 'store.json'
_FORMAT = 1


@dataclass(frozen=True)
class StoreHeader:
    """What the embeddings of a split are.

    Attributes:
        encoder: hash of the encoder's weights and settings.
        input_size_px: side of the encoder's square input.
        fit: `squash` or `letterbox`.
        attention_bias: `live` or `zero`.
        dtype: `float16` or `float32`.
        frames_per_shard: frames of a shard; the last one may have fewer.
        stems: of all frames, in order.
    """

    encoder: str
    input_size_px: int
    fit: str
    attention_bias: str
    dtype: str
    frames_per_shard: int
    stems: tuple[str, ...]

    @property
    def shard_count(self) -> int:
        """Return the number of shards."""
        return -(-len(self.stems) // self.frames_per_shard)

    def stems_of(self, shard: int) -> tuple[str, ...]:
        """Return the stems of a shard's frames."""
        start = shard * self.frames_per_shard
        return self.stems[start:start + self.frames_per_shard]


class EmbeddingStore:
    """The embeddings of one split."""

    def __init__(self, folder: Path, header: StoreHeader) -> None:
        """Remember the place; see `open` and `create`."""
        self.folder = folder
        self.header = header

    @classmethod
    def create(cls, folder: Path, header: StoreHeader) -> 'EmbeddingStore':
        """Start a store, or go on with one that was started alike.

        Raises:
            ParameterError: the folder holds other embeddings.
        """
        path = folder / HEADER
        if path.is_file():
            store = cls(folder, _read_header(path))
            different = [name for name, value in asdict(header).items()
                         if asdict(store.header)[name] != value]
            if different:
                raise ParameterError(
                    f'{folder} holds embeddings of another kind: {", ".join(different)} differs. '
                    'Give another folder, or delete this one')
            return store
        write_text(path, json.dumps({'format': _FORMAT, **asdict(header)}, indent=1))
        return cls(folder, header)

    @classmethod
    def open(cls, folder: Path) -> 'EmbeddingStore':
        """Open a complete store.

        Raises:
            ParameterError: it is absent, damaged or incomplete.
        """
        path = folder / HEADER
        if not path.is_file():
            raise ParameterError(f'{folder} holds no embeddings; make them with '
                                 '`blabberseg fpseg embed`')
        store = cls(folder, _read_header(path))
        missing = store.missing_shards()
        if missing:
            raise ParameterError(
                f'{folder} is incomplete: {len(missing)} of {store.header.shard_count} shards are '
                'missing; run `blabberseg fpseg embed` again, it goes on where it stopped')
        return store

    def missing_shards(self) -> list[int]:
        """Return the shards that are absent or damaged."""
        return [shard for shard in range(self.header.shard_count) if not self._is_whole(shard)]

    def writing(self) -> AbstractContextManager[None]:
        """Keep other writers out, and clear away what a killed one left.

        Raises:
            ParameterError: another process writes here.
        """
        return sole_writer(self.folder, '.shard-*.tmp')

    def write(self, shard: int, embeddings: Mapping[str, np.ndarray]) -> None:
        """Write one shard, whole or not at all.

        Args:
            shard: its number.
            embeddings: stem to [C, h, w], for each frame of the shard.
        """
        tensors = {stem: np.ascontiguousarray(embeddings[stem], self.header.dtype)
                   for stem in self.header.stems_of(shard)}
        write_atomically(self._path(shard), lambda path: save_file(tensors, path))

    def read(self, stem: str) -> np.ndarray:
        """Return a frame's embedding: [C, h, w], in the type that is stored.

        Raises:
            ParameterError: there is none.
        """
        try:
            shard = self._index[stem] // self.header.frames_per_shard
        except KeyError:
            raise ParameterError(f'{self.folder} has no embedding of {stem}; it was made from '
                                 'other frames. Run `blabberseg fpseg embed` again') from None
        with safe_open(self._path(shard), 'np') as stream:
            return stream.get_tensor(stem)

    def check_frames(self, stems: Sequence[str]) -> None:
        """Refuse frames that have no embedding.

        Raises:
            ParameterError: at least one has none.
        """
        strangers = [stem for stem in stems if stem not in self._index]
        if strangers:
            raise ParameterError(
                f'{self.folder} has no embedding of {len(strangers)} of {len(stems)} frames, the '
                f'first is {strangers[0]}; run `blabberseg fpseg embed` for this data set')

    @cached_property
    def _index(self) -> dict[str, int]:
        return {stem: number for number, stem in enumerate(self.header.stems)}

    def _path(self, shard: int) -> Path:
        return self.folder / f'shard-{shard:05d}.safetensors'

    def _is_whole(self, shard: int) -> bool:
        try:
            with safe_open(self._path(shard), 'np') as stream:
                return set(stream.keys()) == set(self.header.stems_of(shard))
        except (OSError, SafetensorError):
            return False


def _read_header(path: Path) -> StoreHeader:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if content.pop('format') != _FORMAT:
            raise ValueError('another format')
        return StoreHeader(**{**content, 'stems': tuple(content['stems'])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f'{path} is damaged ({error}); delete its folder and make the '
                             'embeddings again') from error
