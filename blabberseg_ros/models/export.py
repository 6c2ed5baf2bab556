# SPDX-License-Identifier: Apache-2.0
"""A network of any family to a bundle: weights once, a graph a stage, card and manifest."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blabberseg_ros.atomic import write_atomically, write_text
from blabberseg_ros.bundle import (
    ALIASES,
    CARD,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    Manifest,
    write_manifest,
)
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.families import network_config, stages_of
from blabberseg_ros.models.folding import folded
from blabberseg_ros.models.graphs import Port, export_graph

STORAGES = ('fp32', 'fp16')
# Stages that every frame runs, with a second graph each in half precision. What is kept, such as
# a prompt's code, is computed in float32.
HALF_STAGES = ('image_encoder', 'decoder')
# The one that takes most of a frame on a CPU; with a decoder on integers, too, the answers of a
# full-size CLIPSeg no longer pass the parity gate.
INT8_STAGE = 'image_encoder'


def export_bundle(model: nn.Module, folder: Path, *, name: str, source: str, licence: str,
                  tokenizer_json: Path | None = None, storage: str = 'fp32',
                  vocabulary: tuple[str, ...] | None = None,
                  aliases: Mapping[str, tuple[str, ...]] | None = None,
                  card: str | None = None, int8: bool = False) -> Manifest:
    """Write a network as a bundle.

    Args:
        model: the network; its configuration says of which family.
        folder: of the bundle; made if absent, files of the same names are replaced.
        name: of the bundle.
        source: where the weights come from.
        licence: of the weights.
        tokenizer_json: file to copy as the bundle's tokenizer, if the family reads text.
        storage: `fp32`, or `fp16` to store the matrices in half the space; the graphs compute in
            float32 either way.
        vocabulary: words that the text tower was trained on, if not the whole language.
        aliases: other words for the labels of a family that has a fixed list of them.
        card: text of the bundle's README.md; a short one is written if it is None.
        int8: write a graph of the image encoder on 8-bit integers as well, for CPUs.

    Returns:
        The manifest as written.

    Raises:
        BundleError: the storage is unknown, or `int8` is wanted of a network of convolutions.
    """
    import yaml

    if storage not in STORAGES:
        raise BundleError(f'the storage {storage!r} is unknown; use one of {", ".join(STORAGES)}')
    config = network_config(model)
    model = as_stored(model, storage)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS
    learned = {key for key, _ in model.named_parameters()}
    state = {key: _stored(weight, storage if key in learned else 'fp32')
             for key, weight in model.state_dict().items()}
    write_atomically(weights, lambda temporary: save_file(state, temporary))
    graphs = {}
    for stage_name, stage in stages_of(model).items():
        graphs[stage_name] = f'{stage_name}.onnx'
        variants = {'half': 'fp16'} if stage_name in HALF_STAGES else {}
        if int8 and stage_name == INT8_STAGE:
            variants['int8'] = 'int8'
        graphs |= {f'{stage_name}_{suffix}': f'{stage_name}_{suffix}.onnx'
                   for suffix in variants.values()}
        export_graph(
            stage.module.eval(), stage.example(), folder / graphs[stage_name],
            inputs=tuple(_port(spec) for spec in stage.inputs),
            outputs=tuple(spec.name for spec in stage.outputs), weights=weights,
            **{kind: folder / graphs[f'{stage_name}_{suffix}']
               for kind, suffix in variants.items()})
    if tokenizer_json is not None:
        write_atomically(folder / TOKENIZER,
                         lambda temporary: shutil.copy(tokenizer_json, temporary))
    if vocabulary is not None:
        write_text(folder / VOCABULARY, ''.join(f'{word}\n' for word in sorted(set(vocabulary))))
    if aliases is not None:
        plain = {word: list(labels) for word, labels in sorted(aliases.items())}
        write_text(folder / ALIASES, yaml.safe_dump(plain, allow_unicode=True))
    write_text(folder / CARD, card or (
        f'# {name}\n\n{config.title} {config.variant}, exported for blabberseg_ros.\n\n'
        f'Source: {source}\n\nLicence of the weights: {licence}\n'))
    return write_manifest(folder, Manifest(
        family=config.family, name=name, variant=config.variant,
        input_size_px=config.input_size_px, architecture=config.to_dict(), graphs=graphs,
        source=source, licence=licence))


def as_stored(model: nn.Module, storage: str) -> nn.Module:
    """Return a copy on the CPU whose weights are those that a reader of the bundle gets."""
    model = folded(model).cpu().float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(_stored(weight, storage))
    return model


def _stored(weight: Tensor, storage: str) -> Tensor:
    """Return a weight in the type it is stored in; vectors are small and stay exact."""
    half = storage == 'fp16' and weight.ndim > 1
    return (weight.half() if half else weight).contiguous()


def _port(spec: TensorSpec) -> Port:
    return Port(spec.name, tuple((axis, length) for axis, length in enumerate(spec.shape)
                                 if isinstance(length, str)))
