# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Segformer folders to our network, strict on every key.

The names of transformers 4 and of transformers 5 are read. Our names are our own, since the head
is stored in the form in which it is computed (see `models.segformer`).
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blabberseg_ros.atomic import sha256_of
from blabberseg_ros.errors import BundleError
from blabberseg_ros.labels import read_aliases
from blabberseg_ros.models.checkpoints import State, read_json, read_state
from blabberseg_ros.models.importing import (
    FPSEG_OPTIONS,
    Imported,
    ImportOptions,
    Source,
    hugging_face_weights,
)
from blabberseg_ros.models.segformer import Segformer
from blabberseg_ros.models.segformer_config import STAGES, SegformerConfig, check_input_size

EXAMPLE_ID = 'nvidia/segformer-b0-finetuned-ade-512-512'
TAKES = 'a Hugging Face folder of SegformerForSemanticSegmentation, B0 to B5'
_BATCH_NORM_EPS = 1e-5
_HEAD_WIDTH = 64
# Sizes that our network has built in.
_KNOWN = {'num_channels': 3, 'num_encoder_blocks': STAGES, 'strides': [4, 2, 2, 2],
          'hidden_act': 'gelu', 'reshape_last_stage': True}
# Transformers 5 to transformers 4.
_VERSION_5 = (
    (re.compile(r'^segformer\.stages\.(\d+)\.patch_embeddings\.'),
     r'segformer.encoder.patch_embeddings.\1.'),
    (re.compile(r'^segformer\.stages\.(\d+)\.blocks\.(\d+)\.'),
     r'segformer.encoder.block.\1.\2.'),
    (re.compile(r'^segformer\.stages\.(\d+)\.layer_norm\.'),
     r'segformer.encoder.layer_norm.\1.'),
    (re.compile(r'\.attention\.sequence_reduction\.sequence_reduction\.'), '.attention.self.sr.'),
    (re.compile(r'\.attention\.sequence_reduction\.layer_norm\.'), '.attention.self.layer_norm.'),
    (re.compile(r'\.attention\.q_proj\.'), '.attention.self.query.'),
    (re.compile(r'\.attention\.k_proj\.'), '.attention.self.key.'),
    (re.compile(r'\.attention\.v_proj\.'), '.attention.self.value.'),
    (re.compile(r'\.attention\.o_proj\.'), '.attention.output.dense.'),
    (re.compile(r'\.layernorm_before\.'), '.layer_norm_1.'),
    (re.compile(r'\.layernorm_after\.'), '.layer_norm_2.'),
    (re.compile(r'\.mlp\.fc([12])\.'), r'.mlp.dense\1.'),
    (re.compile(r'^decode_head\.linear_projections\.'), 'decode_head.linear_c.'))
_GENERIC_LABEL = re.compile(r'LABEL_\d+')


def recognises(source: Source) -> bool:
    """Return whether a source looks like a Segformer folder."""
    return source.model_type == 'segformer'


def import_model(path: Path, options: ImportOptions) -> Imported:
    """Read a local Hugging Face Segformer folder.

    Args:
        path: folder with `config.json` and `model.safetensors` or `pytorch_model.bin`.
        options: `clip` adds a text tower, so that prompts are matched by meaning.

    Raises:
        BundleError: missing, damaged, of another family or of another shape.
    """
    options.refuse('Segformer', *FPSEG_OPTIONS)
    if not path.is_dir():
        raise BundleError(f'{path} is not a folder; give a folder like that of {EXAMPLE_ID}, with '
                          'config.json and model.safetensors')
    config_path = path / 'config.json'
    content = read_json(config_path)
    if content.get('model_type') != 'segformer':
        raise BundleError(f'{config_path} describes a model of the family '
                          f'{content.get("model_type")!r}, not segformer; give a folder like that '
                          f'of {EXAMPLE_ID}')
    weights = hugging_face_weights(path)
    config = _config(content, config_path, path, options)
    files = [weights, config_path]
    towers: State = {}
    if options.clip is not None:
        clip = Path(options.clip)
        files.append(clip)
        towers, config = _text_tower(read_state(clip), clip, config)
    state = _renamed(version_4_names(read_state(weights)), config, weights)
    model = _build(config, state, towers)
    notes = ', '.join(f'{file.name} (SHA-256 {sha256_of(file)})' for file in files)
    return Imported(model, notes, 'unknown; read the card of the repository',
                    reads_text=config.reads_text,
                    aliases=read_aliases(options.aliases) if options.aliases else None)


def version_4_names(state: State) -> State:
    """Return a state under the names of transformers 4, in which the hub's files are."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in _VERSION_5:
            key = pattern.sub(name, key)
        renamed[key] = value
    return renamed


def _config(content: Mapping[str, Any], path: Path, folder: Path,
            options: ImportOptions) -> SegformerConfig:
    """Return the sizes that a config.json tells, and refuse what our network does not do."""
    for name, known in _KNOWN.items():
        if content.get(name, known) != known:
            raise BundleError(f'{path} has {name} = {content[name]!r}; only {known!r} is known, '
                              'as in every published Segformer')
    size_px = 512 if options.input_size_px is None else options.input_size_px
    check_input_size(size_px)
    normalisation: dict[str, Any] = {}
    processor = folder / 'preprocessor_config.json'
    if processor.is_file():
        found = read_json(processor)
        normalisation = {ours: tuple(map(float, found[theirs])) for ours, theirs in (
            ('mean', 'image_mean'), ('std', 'image_std')) if theirs in found}
    labels = _labels(content, path, options.classes)
    try:
        return SegformerConfig(
            labels, size_px, hidden=tuple(content['hidden_sizes']),
            depths=tuple(content['depths']), heads=tuple(content['num_attention_heads']),
            reductions=tuple(content['sr_ratios']), mlp_ratios=tuple(content['mlp_ratios']),
            patch_sizes_px=tuple(content['patch_sizes']),
            decoder_width=int(content['decoder_hidden_size']), **normalisation)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f'{path} is not a whole Segformer configuration ({error!r}); download '
                          'it again') from error


def _labels(content: Mapping[str, Any], path: Path, classes: Path | None) -> tuple[str, ...]:
    """Return the names of the labels: of a file, one a line, or the folder's own."""
    if classes is not None:
        try:
            lines = classes.read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f'the names {classes} cannot be read: {error}') from error
        return tuple(line.strip() for line in lines if line.strip())
    id2label = content.get('id2label')
    try:
        names = {int(index): str(name) for index, name in dict(id2label or {}).items()}
    except (TypeError, ValueError) as error:
        raise BundleError(f'{path} has no readable id2label ({error})') from error
    labels = tuple(names.get(index, '') for index in range(len(names)))
    if not labels or not all(labels) or all(_GENERIC_LABEL.fullmatch(name) for name in labels):
        raise BundleError(f'{path} does not name its labels (id2label: {json.dumps(id2label)}), '
                          'and prompts have to be matched to names; give a file with one name a '
                          'line by --classes')
    return labels


def _renamed(state: State, config: SegformerConfig, path: Path) -> State:
    """Return our names and shapes; every tensor of the file is used and none is missing."""
    rest = dict(state)
    if not any(key.startswith('decode_head.') for key in rest):
        raise BundleError(f'{path} has no decode_head: it is the encoder alone, for image '
                          'classification. Give one that was trained for semantic segmentation, '
                          f'such as {EXAMPLE_ID}')

    missing: list[str] = []

    def take(key: str) -> Tensor:
        if key not in rest:
            missing.append(key)
            return torch.zeros(1, 1, 1, 1)
        return rest.pop(key).float()

    ours: State = {}

    def move(theirs: str, name: str) -> None:
        for part in ('weight', 'bias'):
            ours[f'{name}.{part}'] = take(f'{theirs}.{part}')

    encoder = 'segformer.encoder'
    for index, depth in enumerate(config.depths):
        stage = f'stages.{index}'
        move(f'{encoder}.patch_embeddings.{index}.proj', f'{stage}.embedding.proj')
        move(f'{encoder}.patch_embeddings.{index}.layer_norm', f'{stage}.embedding.norm')
        move(f'{encoder}.layer_norm.{index}', f'{stage}.norm')
        for number in range(depth):
            theirs, block = f'{encoder}.block.{index}.{number}', f'{stage}.blocks.{number}'
            attention = f'{theirs}.attention'
            move(f'{theirs}.layer_norm_1', f'{block}.norm1')
            move(f'{theirs}.layer_norm_2', f'{block}.norm2')
            move(f'{attention}.self.query', f'{block}.attention.query')
            move(f'{attention}.output.dense', f'{block}.attention.out')
            for part in ('weight', 'bias'):
                ours[f'{block}.attention.key_value.{part}'] = torch.cat(
                    [take(f'{attention}.self.{name}.{part}') for name in ('key', 'value')])
            if config.reductions[index] > 1:
                move(f'{attention}.self.layer_norm', f'{block}.attention.reduce_norm')
                weight = take(f'{attention}.self.sr.weight')
                ours[f'{block}.attention.reduce.weight'] = weight.permute(0, 2, 3, 1).flatten(1)
                ours[f'{block}.attention.reduce.bias'] = take(f'{attention}.self.sr.bias')
            move(f'{theirs}.mlp.dense1', f'{block}.mlp.fc1')
            move(f'{theirs}.mlp.dwconv.dwconv', f'{block}.mlp.conv')
            move(f'{theirs}.mlp.dense2', f'{block}.mlp.fc2')
    head = {key: take(f'decode_head.{key}') for key in (
        'linear_fuse.weight', 'batch_norm.weight', 'batch_norm.bias', 'batch_norm.running_mean',
        'batch_norm.running_var', *(f'linear_c.{index}.proj.{part}' for index in range(STAGES)
                                    for part in ('weight', 'bias')))}
    rest.pop('decode_head.batch_norm.num_batches_tracked', None)
    move('decode_head.classifier', 'head.classifier')
    if missing or rest:
        raise BundleError(
            f'{path} does not fit its config.json. Missing: {_some(missing)}. Unknown: '
            f'{_some(list(rest))}. Download the folder again, or give one like that of '
            f'{EXAMPLE_ID}')
    try:
        ours.update(_merged_head(head, config.decoder_width))
    except RuntimeError as error:
        raise BundleError(f'the decode_head of {path} has other sizes than its config.json '
                          f'({error}); download the folder again') from error
    return ours


def _merged_head(head: State, width: int) -> State:
    """Return projections that include fusion and batch norm; see `models.segformer`."""
    exact = {key: value.double() for key, value in head.items()}
    scale = exact['batch_norm.weight'] / torch.sqrt(
        exact['batch_norm.running_var'] + _BATCH_NORM_EPS)
    bias = exact['batch_norm.bias'] - scale * exact['batch_norm.running_mean']
    merged: State = {}
    fuse = exact['linear_fuse.weight'].flatten(1)
    if fuse.shape != (width, STAGES * width):
        raise RuntimeError(f'linear_fuse is {list(fuse.shape)}')
    for index in range(STAGES):
        # The deepest stage comes first in what is fused.
        start = (STAGES - 1 - index) * width
        part = scale[:, None] * fuse[:, start:start + width]
        merged[f'head.mix.{index}.weight'] = (
            part @ exact[f'linear_c.{index}.proj.weight']).float()[..., None, None]
        bias = bias + part @ exact[f'linear_c.{index}.proj.bias']
    merged['head.mix.0.bias'] = bias.float()
    return merged


def _build(config: SegformerConfig, state: State, towers: State) -> Segformer:
    """Return the network with these weights; what a label means is computed by its text tower."""
    model = Segformer(config)
    complete = {**state, **{f'text.{key}': value for key, value in towers.items()}}
    if config.reads_text:
        complete['label_embedding'] = model.label_embedding
    try:
        model.load_state_dict(complete, strict=True)
    except RuntimeError as error:
        raise BundleError(f'the weights have other shapes than config.json says ({error}); '
                          'download the folder again') from error
    model.requires_grad_(False).eval()
    if config.reads_text:
        model.label_embedding.copy_(model.embed_text(label_tokens(config.labels)))
    return model


def label_tokens(labels: tuple[str, ...]) -> Tensor:
    """Return the token ids of the labels' names: int [L, 77]."""
    import numpy as np
    from open_clip.tokenizer import default_bpe

    from blabberseg_ros.text import Tokenizer, write_tokenizer_json

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / 'tokenizer.json'
        write_tokenizer_json(default_bpe(), path)
        tokenizer = Tokenizer.from_file(path)
    # Names such as `flat-road` are two words.
    return torch.from_numpy(np.stack(
        [tokenizer.encode(re.sub(r'[-_]+', ' ', label)).ids for label in labels]))


def _text_tower(state: State, path: Path,
                config: SegformerConfig) -> tuple[State, SegformerConfig]:
    """Return the text tower of a CLIP checkpoint and the sizes with it."""
    own = ('token_embedding.', 'positional_embedding', 'transformer.', 'ln_final.',
           'text_projection')
    tower = {key: value.float() for key, value in state.items() if key.startswith(own)}
    if not {'text_projection', 'token_embedding.weight', 'positional_embedding'} <= set(tower):
        raise BundleError(f"{path} has no text tower of CLIP's; give OpenAI's ViT-B-16.pt or "
                          'ViT-B-32.pt')
    width, dim = tower['text_projection'].shape
    return tower, replace(
        config, embed_dim=dim, text_width=width, text_heads=max(width // _HEAD_WIDTH, 1),
        text_layers=sum(key.endswith('.ln_1.weight') for key in tower),
        text_mlp=tower['transformer.resblocks.0.mlp.c_fc.weight'].shape[0],
        vocab_size=tower['token_embedding.weight'].shape[0],
        context_length=tower['positional_embedding'].shape[0])


def _some(names: list[str], limit: int = 6) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return (', '.join(names[:limit]) + more) or 'nothing'
