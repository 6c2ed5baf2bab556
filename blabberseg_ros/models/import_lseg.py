# SPDX-License-Identifier: Apache-2.0
"""Published LSeg checkpoints to our network, strict on every key.

They are checkpoints of PyTorch Lightning: `demo_e200.ckpt` and `fss_l16.ckpt` with a ViT-L/16,
`fss_rn101.ckpt` with a ResNet101. The whole text tower lies in them, so nothing else is needed.
Batch norms are folded into the convolutions before them.
"""

import math
import re
from pathlib import Path
from typing import Any

from blabberseg_ros.atomic import sha256_of
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.checkpoints import State, read_state
from blabberseg_ros.models.clipseg_config import IMAGENET_MEAN, IMAGENET_STD
from blabberseg_ros.models.folding import fold_batch_norms
from blabberseg_ros.models.importing import (
    FPSEG_OPTIONS,
    Imported,
    ImportOptions,
    Source,
    some,
)
from blabberseg_ros.models.lseg import LSeg
from blabberseg_ros.models.lseg_config import LSegConfig, check_input_size

TAKES = 'a Lightning checkpoint of LSeg (.ckpt)'
_LICENCE = ("nothing is said of LSeg's weights (the code of isl-org/lang-seg is MIT); the text "
            'tower is CLIP ViT-B/32 of OpenAI, MIT')
_PREFIX = 'net.'
# Heads of timm's and CLIP's networks have this many channels.
_HEAD_WIDTH = 64

# In published files and of no use here: CLIP's image tower, the classifier of the ViT, and the
# join of the deepest level, which has nothing to be joined to.
_UNUSED = re.compile(
    r'clip_pretrained\.(visual\..+|logit_scale|input_resolution|context_length|vocab_size)'
    r'|pretrained\.model\.(norm|head)\.(weight|bias)'
    r'|scratch\.refinenet4\.resConfUnit1\..+'
    r'|.+\.num_batches_tracked')

_LEVELS = (1, 2, 3, 4)
# How published names begin, and what we put in its place; the first that fits counts.
_BEGINNINGS: tuple[tuple[str, str], ...] = (
    ('clip_pretrained.', 'text.'),
    ('pretrained.model.patch_embed.proj.', 'vision.patch_embed.'),
    ('pretrained.model.', 'vision.'),
    ('pretrained.layer1.0.', 'vision.stem.'),
    ('pretrained.layer1.1.', 'vision.stem.norm.'),
    ('pretrained.layer1.4.', 'vision.stages.0.'),
    *((f'pretrained.layer{level}.', f'vision.stages.{level - 1}.') for level in _LEVELS[1:]),
    *((f'pretrained.act_postprocess{level}.{theirs}.', f'vision.{ours}.')
      for level in _LEVELS for theirs, ours in (
          ('0.project.0', f'readout.{level - 1}'), ('3', f'reassemble.{level - 1}.0'),
          ('4', f'reassemble.{level - 1}.1'))),
    *((f'scratch.{theirs}.', f'fusion.{level - 1}.{ours}.')
      for level in _LEVELS for theirs, ours in (
          (f'layer{level}_rn', 'adapt'), (f'refinenet{level}.resConfUnit1', 'join'),
          (f'refinenet{level}.resConfUnit2', 'refine'),
          (f'refinenet{level}.out_conv', 'project'))),
    ('scratch.head1.', 'head.'),
)
# A batch norm belongs to the convolution before it.
_PARTS = (('.bn1.', '.conv1.norm.'), ('.bn2.', '.conv2.norm.'), ('.bn3.', '.conv3.norm.'),
          ('.downsample.0.', '.downsample.'), ('.downsample.1.', '.downsample.norm.'))


def recognises(source: Source) -> bool:
    """Return whether a source looks like LSeg's weights."""
    return any(key.removeprefix(_PREFIX) == 'scratch.head1.weight' for key in source.keys)


def import_model(path: Path, options: ImportOptions) -> Imported:
    """Read a checkpoint of LSeg.

    Raises:
        BundleError: missing, damaged, of another family or of another shape; an option that says
            nothing here.
    """
    options.refuse('LSeg', 'clip', 'classes', 'aliases', *FPSEG_OPTIONS)
    size_px = (LSegConfig.input_size_px if options.input_size_px is None
               else options.input_size_px)
    check_input_size(size_px)
    model = network_of(read_state(path, ignore_objects=True), str(path), size_px)
    return Imported(model, f'{path.name} (SHA-256 {sha256_of(path)})', _LICENCE)


def network_of(state: State, source: str, input_size_px: int = 480) -> LSeg:
    """Return the network that published tensors make up, in evaluation mode.

    Args:
        state: published names to tensors.
        source: where they come from, for messages.
        input_size_px: side of the square that the service resizes frames to.

    Raises:
        BundleError: a tensor is missing, unknown or of another shape.
    """
    # Exactly this prefix: a set of characters to strip would eat the beginning of some names.
    state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    config = _config_of(state, source, input_size_px)
    used = _renamed({key: value for key, value in state.items() if not _UNUSED.fullmatch(key)})
    model = LSeg(config, norms=True).eval()
    expected = {key: weight for key, weight in model.state_dict().items()
                if not key.endswith('.num_batches_tracked')}
    missing, unexpected = sorted(set(expected) - set(used)), sorted(set(used) - set(expected))
    if missing or unexpected:
        raise BundleError(
            f'{source} does not fit LSeg {config.variant}. Missing: {some(missing)}. Not '
            f'expected: {some(unexpected)}. Give an unchanged published file (names here are '
            "ours: 'net.' is left out, and a batch norm is called after its convolution)")
    for key, weight in expected.items():
        if used[key].shape != weight.shape:
            raise BundleError(f'{source}: {key} has the shape {tuple(used[key].shape)} where '
                              f'{tuple(weight.shape)} is expected; this is no published LSeg')
    # CLIP's matrices are stored in half precision.
    model.load_state_dict({key: value.float() for key, value in used.items()}, strict=False)
    fold_batch_norms(model)
    return model.requires_grad_(False)


def _renamed(state: State) -> State:
    """Return the tensors under our names, and the readout in two parts."""
    renamed: State = {}
    for key, value in state.items():
        name = key
        for theirs, ours in _BEGINNINGS:
            if key.startswith(theirs):
                name = ours + key.removeprefix(theirs)
                break
        for theirs, ours in _PARTS:
            name = name.replace(theirs, ours)
        renamed[name] = value
    for name in [name for name in renamed if name.startswith('vision.readout.')]:
        value = renamed.pop(name)
        stem, _, kind = name.rpartition('.')
        if kind == 'weight' and value.ndim == 2:
            # Each token is followed by the class token.
            own, shared = value.chunk(2, dim=1)
            renamed[f'{stem}.own.weight'], renamed[f'{stem}.shared.weight'] = own, shared
        else:
            renamed[f'{stem}.shared.{kind}'] = value
    return renamed


def _config_of(state: State, source: str, input_size_px: int) -> LSegConfig:
    """Read the sizes, and with them the variant, from the shapes."""
    def length(key: str, axis: int = 0) -> int:
        if key not in state or axis >= state[key].ndim:
            raise BundleError(f'{source} is not a whole LSeg: it has no usable {key}. It has '
                              f'{some(sorted(state))}')
        return state[key].shape[axis]

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, key) is not None for key in state)

    text_width, text = length('clip_pretrained.ln_final.weight'), 'clip_pretrained'
    sizes: dict[str, Any] = {
        'input_size_px': input_size_px,
        'features': length('scratch.head1.weight', 1),
        'embed_dim': length('scratch.head1.weight'),
        'text_width': text_width,
        'text_heads': max(text_width // _HEAD_WIDTH, 1),
        'text_layers': count(rf'{text}\.transformer\.resblocks\.\d+\.ln_1\.weight'),
        'text_mlp': length(f'{text}.transformer.resblocks.0.mlp.c_fc.weight'),
        'vocab_size': length(f'{text}.token_embedding.weight'),
        'context_length': length(f'{text}.positional_embedding'),
    }
    if 'pretrained.model.cls_token' not in state:
        return LSegConfig(
            backbone='resnet', mean=IMAGENET_MEAN, std=IMAGENET_STD,
            resnet_width=length('pretrained.layer1.0.weight'),
            resnet_blocks=(count(r'pretrained\.layer1\.4\.\d+\.conv1\.weight'), *(
                count(rf'pretrained\.layer{level}\.\d+\.conv1\.weight')
                for level in _LEVELS[1:])), **sizes)
    width = length('pretrained.model.cls_token', 2)
    layers = count(r'pretrained\.model\.blocks\.\d+\.norm1\.weight')
    if layers < len(_LEVELS) or layers % len(_LEVELS):
        raise BundleError(f'{source} has {layers} ViT blocks, of which four cannot be evenly '
                          'spaced levels; this is no published LSeg')
    return LSegConfig(
        patch_size_px=length('pretrained.model.patch_embed.proj.weight', 3),
        pretrain_grid=math.isqrt(length('pretrained.model.pos_embed', 1) - 1),
        vision_width=width, vision_heads=max(width // _HEAD_WIDTH, 1), vision_layers=layers,
        vision_mlp=length('pretrained.model.blocks.0.mlp.fc1.weight'),
        hooks=tuple(layers * level // len(_LEVELS) - 1 for level in _LEVELS),
        reassemble=tuple(length(f'pretrained.act_postprocess{level}.3.weight')
                         for level in _LEVELS), **sizes)
