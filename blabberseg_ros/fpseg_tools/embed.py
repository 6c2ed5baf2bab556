# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a whole data set, so that tuning never runs the encoder."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from blabberseg_ros.fpseg_tools.cityscapes import Frame, list_frames, read_image
from blabberseg_ros.fpseg_tools.devices import device_named
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore, StoreHeader
from blabberseg_ros.fpseg_tools.networks import (
    Preprocessor,
    check_source,
    encoder_key,
    open_network,
)
from blabberseg_ros.fpseg_tools.progress import counter
from blabberseg_ros.fpseg_tools.settings import require, require_folder, require_writable
from blabberseg_ros.models.fpseg import FpSeg


@dataclass(frozen=True)
class EmbedSettings:
    """Which embeddings are made.

    Attributes:
        data_root: data set in the layout of Cityscapes.
        network: bundle, checkpoint (SAM, MobileSAM, FPSeg) or result of tuning or distillation.
        embeddings: folder to write; each split is a folder in it.
        splits: to embed; labels are not needed.
        attention_bias: `live` or `zero`, for .pt and .pth checkpoints; null takes the default.
        fit: `squash` or `letterbox`, for such checkpoints; null takes the default.
        input_size_px: for such checkpoints; null takes 1024.
        dtype: `float16` halves the disk space (2 MB a frame at 1024 px) and keeps an embedding,
            whose values are around 1, to 5e-4.
        frames_per_shard: frames of a file, which is what a killed run loses at most.
        batch_size: frames that the encoder takes at once.
        workers: threads that read images.
        device: `cpu`, `cuda` or `auto`.
    """

    data_root: Path
    network: str
    embeddings: Path
    splits: tuple[str, ...] = ('train', 'val')
    attention_bias: Literal['live', 'zero'] | None = None
    fit: Literal['squash', 'letterbox'] | None = None
    input_size_px: int | None = None
    dtype: Literal['float16', 'float32'] = 'float16'
    frames_per_shard: int = 32
    batch_size: int = 4
    workers: int = 4
    device: str = 'auto'

    def __post_init__(self) -> None:
        """Refuse values that are out of bounds."""
        require(min(self.frames_per_shard, self.batch_size, self.workers) >= 1,
                'frames_per_shard, batch_size and workers must be 1 or more')
        require(bool(self.splits), 'splits is empty; name at least one')


def embed(settings: EmbedSettings) -> dict[str, int]:
    """Make the embeddings that are missing.

    Returns:
        For each split the number of frames embedded by this run.

    Raises:
        ParameterError: a path or a setting is wrong.
        BundleError: the network cannot be read.
    """
    require_folder(settings.data_root, 'the data set')
    frames = {split: list_frames(settings.data_root, split, labelled=False)
              for split in settings.splits}
    check_source(settings.network)
    device = device_named(settings.device)
    for split in settings.splits:
        require_writable(settings.embeddings / split)
    model = open_network(settings.network, attention_bias=settings.attention_bias,
                         fit=settings.fit, input_size_px=settings.input_size_px).to(device)
    key = encoder_key(model)
    done = {}
    for split, listed in frames.items():
        store = EmbeddingStore.create(settings.embeddings / split, StoreHeader(
            key, model.config.input_size_px, model.config.fit, model.config.attention_bias,
            settings.dtype, settings.frames_per_shard, tuple(frame.stem for frame in listed)))
        with store.writing():
            done[split] = _fill(store, listed, model, settings, device, split)
    return done


def _fill(store: EmbeddingStore, frames: tuple[Frame, ...], model: FpSeg,
          settings: EmbedSettings, device: torch.device, title: str) -> int:
    """Write the shards that are missing; return the number of frames embedded."""
    missing = store.missing_shards()
    left = sum(len(store.header.stems_of(shard)) for shard in missing)
    by_stem = {frame.stem: frame for frame in frames}
    preprocess = Preprocessor(model.config, device)
    with ThreadPoolExecutor(settings.workers) as pool, \
            counter(f'embedding {title}', len(frames), len(frames) - left) as progress:
        for shard in missing:
            embeddings = {}
            stems = store.header.stems_of(shard)
            images = pool.map(lambda stem: read_image(by_stem[stem].image), stems)
            for batch in _batches(list(zip(stems, images, strict=True)), settings.batch_size):
                with torch.inference_mode():
                    codes = model.encode_images(
                        torch.stack([preprocess(image) for _, image in batch]))
                for (stem, _), code in zip(batch, codes.cpu().numpy(), strict=True):
                    embeddings[stem] = code
                progress.update(len(batch))
            store.write(shard, embeddings)
    return left


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start:start + size]
