# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of LSeg as they are published, in names and shapes, filled by a rule.

The rule and the figures that follow from it were taken from the original modules, so they check
our network without the weights, which cannot be had.
"""

import sys
import types
import zlib
from pathlib import Path

import numpy as np
import torch

# Names that are neither norms nor matrices.
_EMBEDDINGS = ('pos_embed', 'cls_token', 'positional_embedding', 'token_embedding')
Shapes = dict[str, tuple[int, ...]]


def published_shapes(*, backbone='vit', width=1024, layers=24, mlp=4096, grid=24,
                     channels=(256, 512, 1024, 1024), features=256, embed_dim=512,
                     blocks=(3, 4, 23, 3), stem=64, text_width=512, text_layers=12,
                     text_mlp=2048):
    """Return name to shape of what a published checkpoint holds and LSeg needs."""
    shapes = _text(embed_dim, text_width, text_layers, text_mlp)
    if backbone == 'vit':
        shapes |= _vit(width, layers, mlp, grid, channels)
    else:
        channels = tuple(4 * stem * 2 ** level for level in range(4))
        shapes |= _resnet(stem, blocks)
    for level, count in enumerate(channels, 1):
        shapes[f'scratch.layer{level}_rn.weight'] = (features, count, 3, 3)
        step = f'scratch.refinenet{level}'
        shapes |= _with_bias(f'{step}.out_conv', (features, features, 1, 1))
        for unit in (1, 2):
            for number in (1, 2):
                shapes[f'{step}.resConfUnit{unit}.conv{number}.weight'] = (
                    features, features, 3, 3)
                shapes |= _norm(f'{step}.resConfUnit{unit}.bn{number}', features)
    return shapes | _with_bias('scratch.head1', (embed_dim, features, 1, 1))


def unused_shapes():
    """Return tensors that published checkpoints hold and LSeg does not need, made small."""
    return {'clip_pretrained.visual.proj': (8, 4), 'clip_pretrained.visual.ln_post.weight': (8,),
            'clip_pretrained.logit_scale': (), 'pretrained.model.norm.weight': (8,),
            'pretrained.model.head.bias': (10,)}


def filled(shapes):
    """Return tensors drawn by the rule."""
    return {name: torch.from_numpy(_values(name, shape)) for name, shape in shapes.items()}


def save_lightning(state, path: Path):
    """Save a state as PyTorch Lightning does: beside objects of classes that we do not have."""
    module = types.ModuleType('pytorch_lightning_of_another_time')
    callback = type('ModelCheckpoint', (), {'__module__': module.__name__})
    module.ModelCheckpoint = callback
    sys.modules[module.__name__] = module
    try:
        torch.save({'epoch': 200, 'callbacks': {callback: {'best': callback()}},
                    'state_dict': {f'net.{name}': value for name, value in state.items()}}, path)
    finally:
        del sys.modules[module.__name__]


def _values(name, shape):
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('running_var'):
        values = 1 + 0.1 * np.abs(values)
    elif name.endswith('running_mean'):
        values *= 0.1
    elif any(part in name for part in _EMBEDDINGS):
        values *= 0.5
    elif len(shape) == 1:
        values = 0.1 * values + (1.0 if name.endswith('weight') else 0.0)
    elif shape:
        values /= np.sqrt(np.prod(shape[1:]))
    return np.asarray(values, np.float32)


def _text(embed_dim, width, layers, mlp):
    shapes = {'clip_pretrained.positional_embedding': (77, width),
              'clip_pretrained.text_projection': (width, embed_dim),
              'clip_pretrained.token_embedding.weight': (49408, width)}
    shapes |= _with_bias('clip_pretrained.ln_final', (width,))
    for layer in range(layers):
        block = f'clip_pretrained.transformer.resblocks.{layer}'
        shapes |= {f'{block}.attn.in_proj_weight': (3 * width, width),
                   f'{block}.attn.in_proj_bias': (3 * width,)}
        shapes |= _with_bias(f'{block}.attn.out_proj', (width, width))
        shapes |= _with_bias(f'{block}.mlp.c_fc', (mlp, width))
        shapes |= _with_bias(f'{block}.mlp.c_proj', (width, mlp))
        for norm in ('ln_1', 'ln_2'):
            shapes |= _with_bias(f'{block}.{norm}', (width,))
    return shapes


def _vit(width, layers, mlp, grid, channels):
    model = 'pretrained.model'
    shapes = {f'{model}.cls_token': (1, 1, width),
              f'{model}.pos_embed': (1, grid * grid + 1, width)}
    shapes |= _with_bias(f'{model}.patch_embed.proj', (width, 3, 16, 16))
    for layer in range(layers):
        block = f'{model}.blocks.{layer}'
        for name, shape in (('norm1', (width,)), ('attn.qkv', (3 * width, width)),
                            ('attn.proj', (width, width)), ('norm2', (width,)),
                            ('mlp.fc1', (mlp, width)), ('mlp.fc2', (width, mlp))):
            shapes |= _with_bias(f'{block}.{name}', shape)
    first, second, _, fourth = channels
    for level, count in enumerate(channels, 1):
        part = f'pretrained.act_postprocess{level}'
        shapes |= _with_bias(f'{part}.0.project.0', (width, 2 * width))
        shapes |= _with_bias(f'{part}.3', (count, width, 1, 1))
    for level, shape in ((1, (first, first, 4, 4)), (2, (second, second, 2, 2)),
                         (4, (fourth, fourth, 3, 3))):
        shapes |= _with_bias(f'pretrained.act_postprocess{level}.4', shape)
    return shapes


def _resnet(stem, blocks):
    shapes = {'pretrained.layer1.0.weight': (stem, 3, 7, 7)} | _norm('pretrained.layer1.1', stem)
    channels = stem
    for level, count in enumerate(blocks, 1):
        width = stem * 2 ** (level - 1)
        for index in range(count):
            block = (f'pretrained.layer1.4.{index}' if level == 1
                     else f'pretrained.layer{level}.{index}')
            for number, shape in ((1, (width, channels, 1, 1)), (2, (width, width, 3, 3)),
                                  (3, (4 * width, width, 1, 1))):
                shapes[f'{block}.conv{number}.weight'] = shape
                shapes |= _norm(f'{block}.bn{number}', shape[0])
            if index == 0:
                shapes[f'{block}.downsample.0.weight'] = (4 * width, channels, 1, 1)
                shapes |= _norm(f'{block}.downsample.1', 4 * width)
            channels = 4 * width
    return shapes


def _with_bias(name, shape):
    # A transposed convolution has as many biases as output channels; here both are the same.
    return {f'{name}.weight': shape, f'{name}.bias': (shape[0],)}


def _norm(name, channels):
    return {f'{name}.{part}': (channels,)
            for part in ('weight', 'bias', 'running_mean', 'running_var')}
