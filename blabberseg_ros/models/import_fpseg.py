# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAM, MobileSAM and FPSeg to our network, strict on every key.

All three are flat dictionaries with the names that our network has. SAM's and MobileSAM's hold no
classes: theirs start as random tokens, for training to tune.
"""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blabberseg_ros.atomic import sha256_of
from blabberseg_ros.errors import BundleError
from blabberseg_ros.labels import plain, read_aliases
from blabberseg_ros.models.checkpoints import State, read_state
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import (
    CITYSCAPES_CLASSES,
    STRIDE_PX,
    EncoderConfig,
    FpSegConfig,
    SamVitConfig,
    TinyVitConfig,
)
from blabberseg_ros.models.fpseg_prompts import check_names
from blabberseg_ros.models.importing import Imported, ImportOptions, Source, some

TAKES = 'a checkpoint of SAM, MobileSAM or FPSeg (.pth, .pt)'

DEFAULT_PROMPT_SIZE = 64
DEFAULT_INPUT_SIZE_PX = 1024
_DECODER_HEADS = 8
_SAM_WINDOW = 14
# TinyViT's rule: a stage of one of these widths is not half as large as the one before.
_WIDTHS_WITHOUT_STRIDE = (320, 448, 576)
_PROMPTS = 'prompt_encoder.prompt_embeddings'

# Git's name of published files, which is how they can be told: its SHA-1 of size and content.
PUBLISHED = {
    'e4168e65e1735f1a5cde60b3b7b6568a4672ec89': 'fpseg_mobilesam.pth of JanKrabbe/FPSeg',
    '8ffa8a7ced7614fa3c0af66627c522c445c1bf58': 'fpseg_mobilesam_distilled.pth of '
                                                'JanKrabbe/FPSeg',
    '7ef2d090979fd9853adf17b7a99c8b94a1c5a6a7': 'mobile_sam.pt of ChaoningZhang/MobileSAM',
}

# In the files and of no use here: TinyViT's classifier, SAM's prompts for points and masks, its
# guess of its own IoU, and the three mask tokens for ambiguous points.
_UNUSED = re.compile(
    r'image_encoder\.(norm_head|head)\.(weight|bias)|pixel_(mean|std)'
    r'|prompt_encoder\.(point_embeddings\.\d|not_a_point_embed)\.weight'
    r'|prompt_encoder\.mask_downscaling\.\d\.(weight|bias)'
    r'|mask_decoder\.iou_token\.weight|mask_decoder\.iou_prediction_head\.layers\.\d\.\w+'
    r'|mask_decoder\.output_hypernetworks_mlps\.[1-9]\.layers\.\d\.\w+')


def recognises(source: Source) -> bool:
    """Return whether a source looks like SAM's, MobileSAM's or FPSeg's weights."""
    return any(key.startswith('image_encoder.patch_embed.') for key in source.keys) and any(
        key.startswith('mask_decoder.transformer.') for key in source.keys)


def import_model(path: Path, options: ImportOptions) -> Imported:
    """Read a checkpoint as the command line asks.

    Raises:
        BundleError: as `import_checkpoint`; an option that says nothing here.
    """
    options.refuse('FPSeg', 'clip')
    classes = None if options.classes is None else read_class_names(options.classes)
    imported = import_checkpoint(
        path, classes=classes, prompt_size=options.prompt_size, fit=options.fit or 'squash',
        attention_bias=options.attention_bias, input_size_px=options.input_size_px)
    aliases = None if options.aliases is None else read_aliases(options.aliases)
    return Imported(imported.model, imported.source, imported.licence, False, aliases)


def import_checkpoint(path: Path, *, classes: tuple[str, ...] | None = None,
                      prompt_size: int | None = None, attention_bias: str | None = None,
                      fit: str = 'squash', input_size_px: int | None = None,
                      seed: int = 0) -> Imported:
    """Read a checkpoint of SAM, MobileSAM or FPSeg.

    Args:
        path: of the file.
        classes: names. A file with the 33 published classes gives those that are named, in this
            order; another file with classes has to have as many; a file without any gets random
            tokens, which are of no use before they are tuned. None takes all 33.
        prompt_size: tokens a class, where the file has no classes; 64 if None.
        attention_bias: `live` or `zero` (see `FpSegConfig`); None takes `zero` for files with
            classes and a TinyViT, whose prompts were tuned that way, and `live` for all others.
        fit: `squash` or `letterbox`.
        input_size_px: side of the square input, a multiple of 16; 1024 if None. ViT encoders get
            their position tables resized.
        seed: of the random tokens.

    Raises:
        BundleError: missing, damaged, of another family or of another shape; wrong class names.
    """
    state = {key: value for key, value in read_state(path).items() if not _UNUSED.fullmatch(key)}
    encoder = _encoder_of(state, path)
    size_px = input_size_px or DEFAULT_INPUT_SIZE_PX
    if isinstance(encoder, SamVitConfig):
        encoder = _resize_tables(state, encoder, size_px // STRIDE_PX)
    tuned = _PROMPTS in state
    names = _choose_classes(state, classes, path)
    if not tuned:
        if prompt_size is not None and prompt_size < 1:
            raise BundleError(f'a prompt size of {prompt_size} tokens is none; give 1 or more')
        state[_PROMPTS] = _random_tokens(
            len(names), prompt_size or DEFAULT_PROMPT_SIZE, _width_of(state, path), seed)
    elif prompt_size not in (None, state[_PROMPTS].shape[1]):
        raise BundleError(f'{path} has classes of {state[_PROMPTS].shape[1]} tokens, not '
                          f'{prompt_size}; leave the prompt size out')
    if attention_bias is None:
        zero = tuned and isinstance(encoder, TinyVitConfig)
        attention_bias = 'zero' if zero else 'live'
    config = FpSegConfig(
        encoder=encoder, class_names=names, prompt_size=state[_PROMPTS].shape[1],
        input_size_px=size_px, width=_width_of(state, path), decoder_heads=_DECODER_HEADS,
        decoder_depth=_count(r'mask_decoder\.transformer\.layers\.(\d+)\.', state),
        decoder_mlp=_shape(state, 'mask_decoder.transformer.layers.0.mlp.lin1.weight', path)[0],
        attention_bias=attention_bias, fit=fit)
    note = '' if tuned else '; its classes are random and untuned'
    return Imported(_build(state, config, path), _source(path) + note, _licence(path), False)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        BundleError: it cannot be read, is empty or names a class twice.
    """
    try:
        lines = path.expanduser().read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f'the class names {path} cannot be read: {error}') from error
    names = tuple(line.strip() for line in lines if line.strip())
    check_names(names, str(path))
    return names


def git_blob_id(path: Path) -> str:
    """Return what `git hash-object` says of a file."""
    digest = hashlib.sha1(f'blob {path.stat().st_size}\0'.encode(), usedforsecurity=False)
    with open(path, 'rb') as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _encoder_of(state: State, path: Path) -> EncoderConfig:
    """Read the encoder's sizes from the shapes."""
    if 'image_encoder.patch_embed.proj.weight' in state:
        return _sam_vit_of(state, path)
    if 'image_encoder.patch_embed.seq.0.c.weight' in state:
        return _tiny_vit_of(state, path)
    raise BundleError(f'{path} has no image encoder of SAM or MobileSAM but {some(state)}; give '
                      'an unchanged checkpoint of SAM, MobileSAM or FPSeg')


def _tiny_vit_of(state: State, path: Path) -> TinyVitConfig:
    layer = 'image_encoder.layers'
    first = _shape(state, f'{layer}.0.blocks.0.conv1.c.weight', path)
    tables = [_shape(state, f'{layer}.{index}.blocks.0.attn.attention_biases', path)
              for index in (1, 2, 3)]
    dims = (first[1], *(_shape(state, f'{layer}.{index}.downsample.conv3.c.weight', path)[0]
                        for index in (0, 1, 2)))
    return TinyVitConfig(
        embed_dims=dims,
        depths=(_count(r'image_encoder\.layers\.0\.blocks\.(\d+)\.', state),
                _count(r'image_encoder\.layers\.1\.blocks\.(\d+)\.', state),
                _count(r'image_encoder\.layers\.2\.blocks\.(\d+)\.', state),
                _count(r'image_encoder\.layers\.3\.blocks\.(\d+)\.', state)),
        # The first stage has no attention; the values are MobileSAM's.
        heads=(TinyVitConfig.heads[0], *(table[0] for table in tables)),
        windows=(TinyVitConfig.windows[0], *(math.isqrt(table[1]) for table in tables)),
        strides=tuple(1 if width in _WIDTHS_WITHOUT_STRIDE else 2 for width in dims[1:]),
        mbconv_ratio=first[0] // first[1],
        mlp_ratio=_shape(state, f'{layer}.1.blocks.0.mlp.fc1.weight', path)[0] // dims[1])


def _sam_vit_of(state: State, path: Path) -> SamVitConfig:
    block = 'image_encoder.blocks'
    width = _shape(state, 'image_encoder.patch_embed.proj.weight', path)[0]
    depth = _count(r'image_encoder\.blocks\.(\d+)\.', state)
    tables = [_shape(state, f'{block}.{index}.attn.rel_pos_h', path) for index in range(depth)]
    return SamVitConfig(
        width=width, depth=depth, heads=width // max(tables[0][1], 1),
        global_blocks=tuple(index for index, table in enumerate(tables)
                            if table[0] != 2 * _SAM_WINDOW - 1),
        mlp_ratio=_shape(state, f'{block}.0.mlp.lin1.weight', path)[0] // width,
        grid=_shape(state, 'image_encoder.pos_embed', path)[1])


def _resize_tables(state: State, encoder: SamVitConfig, grid: int) -> SamVitConfig:
    """Fit the position tables to another input size, in place: as SAM does, once and for all."""
    if grid == encoder.grid or grid < 1:
        return encoder
    position = state['image_encoder.pos_embed'].float().permute(0, 3, 1, 2)
    state['image_encoder.pos_embed'] = functional.interpolate(
        position, (grid, grid), mode='bicubic', align_corners=False).permute(0, 2, 3, 1)
    for index in encoder.global_blocks:
        for axis in 'hw':
            key = f'image_encoder.blocks.{index}.attn.rel_pos_{axis}'
            state[key] = functional.interpolate(
                state[key].float().T[None], 2 * grid - 1, mode='linear')[0].T
    return SamVitConfig(**{**vars(encoder), 'grid': grid})


def _choose_classes(state: State, classes: tuple[str, ...] | None,
                    path: Path) -> tuple[str, ...]:
    """Return the names of the classes; where some of a file's are asked for, keep those alone."""
    if classes is not None:
        check_names(classes, 'the class names')
    if _PROMPTS not in state:
        if classes is None:
            raise BundleError(f'{path} holds no classes; name by --classes those that it shall '
                              'learn. They are random until `blabberseg fpseg tune` has run')
        return classes
    count = state[_PROMPTS].shape[0]
    if count == len(CITYSCAPES_CLASSES):
        rows = {plain(name): row for row, name in enumerate(CITYSCAPES_CLASSES)}
        if classes is None:
            return CITYSCAPES_CLASSES
        if all(plain(name) in rows for name in classes):
            state[_PROMPTS] = state[_PROMPTS][[rows[plain(name)] for name in classes]]
            return classes
    if classes is None or len(classes) != count:
        given = 'none' if classes is None else str(len(classes))
        raise BundleError(f'{path} has {count} classes without names and {given} were given; name '
                          'all of them by --classes, in the order of their training')
    return classes


def _build(state: State, config: FpSegConfig, path: Path) -> FpSeg:
    """Make the network and load every tensor into it."""
    model = FpSeg(config).eval()
    mask_tokens = 'mask_decoder.mask_tokens.weight'
    if mask_tokens in state:
        state[mask_tokens] = state[mask_tokens][:1]
    expected = model.state_dict()
    # A count of training batches is no weight; files may lack it.
    missing = sorted(key for key in set(expected) - set(state)
                     if not key.endswith('num_batches_tracked'))
    unexpected = sorted(set(state) - set(expected))
    if missing or unexpected:
        raise BundleError(
            f'{path} does not fit FPSeg {config.variant}. Missing: {some(missing)}. Not expected: '
            f'{some(unexpected)}. Give an unchanged checkpoint of SAM, MobileSAM or FPSeg')
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise BundleError(f'{path}: {key} has the shape {tuple(value.shape)} where '
                              f'{tuple(expected[key].shape)} is expected; its parts do not '
                              'belong together')
    model.load_state_dict({**expected, **state})
    return model


def _random_tokens(classes: int, tokens: int, width: int, seed: int) -> Tensor:
    return torch.randn(classes, tokens, width, generator=torch.Generator().manual_seed(seed))


def _width_of(state: State, path: Path) -> int:
    return _shape(state, 'image_encoder.neck.0.weight', path)[0]


def _shape(state: State, key: str, path: Path) -> Any:
    if key not in state or state[key].ndim < 2:
        raise BundleError(f'{path} is not a whole checkpoint: it has no usable {key}. It has '
                          f'{some(state)}')
    return state[key].shape


def _count(pattern: str, state: State) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _source(path: Path) -> str:
    published = PUBLISHED.get(git_blob_id(path))
    return (f'{path.name} (SHA-256 {sha256_of(path)}'
            f'{", the " + published if published else ""})')


def _licence(path: Path) -> str:
    return ('Apache-2.0' if git_blob_id(path) in PUBLISHED else
            'unknown; ask where the weights come from')
