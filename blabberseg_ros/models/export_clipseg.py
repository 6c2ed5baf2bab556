# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg to a bundle: weights once, five graphs, tokenizer, card and manifest.

    image_encoder   image uint8 [H, W, 3], rows [S, H], cols [W, S] -> code [L, T, r]
    text_encoder    tokens int32 [P, 77] -> conditional [P, D]
    film            conditional [P, D] -> mul [P, r], add [P, r]
    decoder         code [L, T, r], mul [P, r], add [P, r] -> logits [P, S, S]
    fusion          logits [P, S, S], positive [P], rows [H, S], cols [S, W] -> probability [H, W]

H, W and P are dynamic. Everything is float32 unless said otherwise.
"""

import copy
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from blabberseg_ros.atomic import write_atomically, write_text
from blabberseg_ros.bundle import (
    CARD,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    Manifest,
    write_manifest,
)
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.graphs import Port, export_graph
from blabberseg_ros.models.stages import Decoder, Film, Fusion, ImageEncoder, TextEncoder

FAMILY = 'clipseg'
STORAGES = ('fp32', 'fp16')
_PROMPTS = ((0, 'prompts'),)
# Example lengths of the dynamic axes, all different from each other and from the sizes.
_EXAMPLE_PROMPTS, _EXAMPLE_HEIGHT, _EXAMPLE_WIDTH = 3, 41, 57


def export_bundle(model: ClipSeg, folder: Path, *, name: str, source: str, licence: str,
                  tokenizer_json: Path, storage: str = 'fp32',
                  vocabulary: tuple[str, ...] | None = None, card: str | None = None) -> Manifest:
    """Write a network as a bundle.

    Args:
        model: the network.
        folder: of the bundle; made if absent, files of the same names are replaced.
        name: of the bundle.
        source: where the weights come from.
        licence: of the weights.
        tokenizer_json: file to copy as the bundle's tokenizer.
        storage: `fp32`, or `fp16` to store the matrices in half the space; the graphs compute in
            float32 either way.
        vocabulary: words that the text tower was trained on, if not the whole language.
        card: text of the bundle's README.md; a short one is written if it is None.

    Returns:
        The manifest as written.

    Raises:
        BundleError: the storage is unknown.
    """
    if storage not in STORAGES:
        raise BundleError(f'the storage {storage!r} is unknown; use one of {", ".join(STORAGES)}')
    model = _as_stored(model, storage)
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS
    state = {key: _stored(weight, storage) for key, weight in model.state_dict().items()}
    write_atomically(weights, lambda temporary: save_file(state, temporary))
    graphs = _export_stages(model, folder, weights)
    write_atomically(folder / TOKENIZER, lambda temporary: shutil.copy(tokenizer_json, temporary))
    if vocabulary is not None:
        write_text(folder / VOCABULARY, ''.join(f'{word}\n' for word in sorted(set(vocabulary))))
    write_text(folder / CARD, card or _card(name, config.variant, source, licence))
    return write_manifest(folder, Manifest(
        family=FAMILY, name=name, variant=config.variant,
        input_size_px=config.input_size_px, architecture=config.to_dict(), graphs=graphs,
        source=source, licence=licence))


def _export_stages(model: ClipSeg, folder: Path, weights: Path) -> dict[str, str]:
    """Export the five stages; return stage name to file name."""
    config = model.config
    size, width, prompts = config.input_size_px, config.reduce_dim, _EXAMPLE_PROMPTS
    height_px, width_px = _EXAMPLE_HEIGHT, _EXAMPLE_WIDTH
    pair = (torch.zeros(prompts, width), torch.zeros(prompts, width))
    logits = torch.zeros(prompts, size, size)
    pair_ports = (Port('mul', _PROMPTS), Port('add', _PROMPTS))
    stages = {
        'image_encoder': (
            ImageEncoder(model),
            (torch.zeros(height_px, width_px, 3, dtype=torch.uint8),
             torch.zeros(size, height_px), torch.zeros(width_px, size)),
            (Port('image', ((0, 'height'), (1, 'width'))), Port('rows', ((1, 'height'),)),
             Port('cols', ((0, 'width'),))),
            ('code',)),
        'text_encoder': (
            TextEncoder(model),
            (torch.ones(prompts, config.context_length, dtype=torch.int32),),
            (Port('tokens', _PROMPTS),),
            ('conditional',)),
        'film': (
            Film(model),
            (torch.zeros(prompts, config.embed_dim),),
            (Port('conditional', _PROMPTS),),
            ('mul', 'add')),
        'decoder': (
            Decoder(model),
            (torch.zeros(len(config.extract), config.tokens, width), *pair),
            (Port('code'), *pair_ports),
            ('logits',)),
        'fusion': (
            Fusion(),
            (logits, torch.zeros(prompts), torch.zeros(height_px, size),
             torch.zeros(size, width_px)),
            (Port('logits', _PROMPTS), Port('positive', _PROMPTS), Port('rows', ((0, 'height'),)),
             Port('cols', ((1, 'width'),))),
            ('probability',)),
    }
    for stage, (module, example, inputs, outputs) in stages.items():
        export_graph(module.eval(), example, folder / f'{stage}.onnx', inputs=inputs,
                     outputs=outputs, weights=weights)
    return {stage: f'{stage}.onnx' for stage in stages}


def _as_stored(model: ClipSeg, storage: str) -> ClipSeg:
    """Return a copy on the CPU whose weights are those that a reader of the bundle gets."""
    model = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(_stored(weight, storage))
    return model


def _stored(weight: Tensor, storage: str) -> Tensor:
    """Return a weight in the type it is stored in; vectors are small and stay exact."""
    half = storage == 'fp16' and weight.ndim > 1
    return (weight.half() if half else weight).contiguous()


def _card(name: str, variant: str, source: str, licence: str) -> str:
    return (f'# {name}\n\nCLIPSeg {variant}, exported for blabberseg_ros.\n\n'
            f'Source: {source}\n\nLicence of the weights: {licence}\n')
