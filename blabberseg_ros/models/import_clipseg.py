# SPDX-License-Identifier: Apache-2.0
"""Published CLIPSeg checkpoints to our network, strict on every key.

Two formats are read: a Hugging Face folder (`config.json` and `model.safetensors` or
`pytorch_model.bin`), and the authors' decoder file (`rd64-uni-refined.pth`) with a checkpoint of
OpenAI's CLIP ViT-B/16. Our network has the authors' names, so that theirs need no translation.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from blabberseg_ros.atomic import sha256_of
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.checkpoints import State, read_json, read_state
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig, check_input_size
from blabberseg_ros.models.importing import (
    FPSEG_OPTIONS,
    Imported,
    ImportOptions,
    Source,
    hugging_face_weights,
    some,
)

HUB_ID = 'CIDAS/clipseg-rd64-refined'
CLIP_BY_NAME = 'openai'
EXTRACT = (3, 6, 9)
_HEAD_WIDTH = 64
_QKV = ('q', 'k', 'v')

# SHA-256 of published files: what they are, and what is known about their licence.
_NO_LICENCE = ('none given: the authors released the weights for research purposes '
               '(timojl/clipseg issue 35)')
PUBLISHED: dict[str, tuple[str, str]] = {
    '61545cdb3a28f99d33d457c64a9721ade835a9dfbda604c459de6831c504167a':
        ('rd16-uni.pth of timojl/clipseg', _NO_LICENCE),
    '13845f6cee4d54ca46f62ee19dd354822094a26e0efccc64e606be93d6a7e26f':
        ('rd64-uni.pth of timojl/clipseg', _NO_LICENCE),
    'd00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55':
        (f'model.safetensors of {HUB_ID}',
         'tagged apache-2.0 on the hub; ' + _NO_LICENCE),
    '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f':
        ('ViT-B-16.pt of OpenAI', 'MIT (openai/CLIP)'),
}

# In published files and of no use here: the pooled outputs of CLIP, CLIPSeg's leftover baseline
# projection, a second copy of the image tower, sizes and index tables stored as tensors.
_UNUSED = re.compile(
    r'(reduce\.(weight|bias)|model\..+|logit_scale|visual\.proj|visual\.ln_post\.(weight|bias)'
    r'|input_resolution|context_length|vocab_size|attn_mask|position_ids)')
_BLOCK = re.compile(r'visual\.transformer\.resblocks\.(\d+)\.')

_HF_NAMES = (
    ('clip.vision_model.embeddings.class_embedding', 'visual.class_embedding'),
    ('clip.vision_model.embeddings.patch_embedding.', 'visual.conv1.'),
    ('clip.vision_model.embeddings.position_embedding.weight', 'visual.positional_embedding'),
    ('clip.vision_model.embeddings.position_ids', 'position_ids'),
    ('clip.vision_model.pre_layrnorm.', 'visual.ln_pre.'),
    ('clip.vision_model.post_layernorm.', 'visual.ln_post.'),
    ('clip.vision_model.encoder.layers.', 'visual.transformer.resblocks.'),
    ('clip.visual_projection.weight', 'visual.proj'),
    ('clip.text_model.embeddings.token_embedding.', 'token_embedding.'),
    ('clip.text_model.embeddings.position_embedding.weight', 'positional_embedding'),
    ('clip.text_model.embeddings.position_ids', 'position_ids'),
    ('clip.text_model.encoder.layers.', 'transformer.resblocks.'),
    ('clip.text_model.final_layer_norm.', 'ln_final.'),
    ('clip.text_projection.weight', 'text_projection'),
    ('clip.logit_scale', 'logit_scale'),
    ('decoder.film_mul.', 'film_mul.'),
    ('decoder.film_add.', 'film_add.'),
    ('decoder.reduces.', 'reduces.'),
    ('decoder.transposed_convolution.', 'trans_conv.'),
    ('decoder.layers.', 'blocks.'),
)
_HF_TOWER_PARTS = (('.self_attn.', '.attn.'), ('.layer_norm', '.ln_'), ('.mlp.fc1.', '.mlp.c_fc.'),
                   ('.mlp.fc2.', '.mlp.c_proj.'))
_HF_DECODER_PARTS = (('.layer_norm', '.norm'), ('.mlp.fc', '.linear'))


TAKES = 'a Hugging Face CLIPSeg folder, or a decoder of the authors (.pth) with --clip'


def recognises(source: Source) -> bool:
    """Return whether a source looks like CLIPSeg's weights."""
    return source.model_type == 'clipseg' or 'film_mul.weight' in source.keys


def import_model(path: Path, options: ImportOptions) -> Imported:
    """Read CLIPSeg's weights from a folder of Hugging Face or a file of the authors.

    Raises:
        BundleError: missing, damaged, of another family or of another shape; an option that says
            nothing here.
    """
    options.refuse('CLIPSeg', 'classes', 'aliases', *FPSEG_OPTIONS)
    size_px = ClipSegConfig.input_size_px if options.input_size_px is None else \
        options.input_size_px
    check_input_size(size_px)
    if path.is_dir():
        return import_hugging_face(path, size_px)
    return import_original(path, options.clip, size_px)


def import_hugging_face(folder: Path, input_size_px: int = 352) -> Imported:
    """Read a local Hugging Face CLIPSeg folder.

    Args:
        folder: with `config.json` and `model.safetensors` or `pytorch_model.bin`.
        input_size_px: side of the square input image.

    Raises:
        BundleError: missing, damaged, of another family or of another shape.
    """
    config_path = folder / 'config.json'
    config = read_json(config_path)
    family = config.get('model_type')
    if family != 'clipseg':
        raise BundleError(f'{config_path} describes a model of the family {family!r}, not '
                          f'clipseg; give a folder like that of {HUB_ID}')
    weights = hugging_face_weights(folder)
    options = _hugging_face_options(config, config_path)
    state = _from_hugging_face(read_state(weights))
    model = _build(state, str(weights), input_size_px, **options)
    return _imported(model, [weights, config_path])


def import_original(decoder: Path, clip: Path | str | None, input_size_px: int = 352) -> Imported:
    """Read the authors' decoder and a checkpoint of CLIP.

    Args:
        decoder: `rd64-uni-refined.pth`, `rd64-uni.pth` or `rd16-uni.pth`.
        clip: OpenAI's CLIP ViT-B/16 as a file (a state dict of open_clip's names, or OpenAI's own
            archive); `openai` to let open_clip fetch it; None if the decoder file has it too.
        input_size_px: side of the square input image.

    Raises:
        BundleError: missing, damaged, of another family or of another shape.
    """
    state = read_state(decoder)
    if 'film_mul.weight' not in state:
        raise BundleError(f'{decoder} is not a CLIPSeg decoder: it has no film_mul.weight but '
                          f'{some(state)}. Give rd64-uni-refined.pth, rd64-uni.pth or '
                          'rd16-uni.pth, and CLIP by --clip')
    files, note = [decoder], ''
    if clip is None and not any(key.startswith('clip_model.') for key in state):
        raise BundleError(f'{decoder} holds the decoder alone; say by --clip where CLIP ViT-B/16 '
                          f'is: a file, or {CLIP_BY_NAME} to download it')
    state = {key.removeprefix('clip_model.'): value for key, value in state.items()}
    if clip == CLIP_BY_NAME:
        towers, note = _openai_clip(), '; CLIP ViT-B/16 of OpenAI by open_clip'
    elif clip is not None:
        files.append(Path(clip))
        towers = read_state(Path(clip))
        _check_is_vit(towers, Path(clip))
    else:
        towers = {}
    model = _build({**towers, **state}, ' and '.join(map(str, files)), input_size_px)
    imported = _imported(model, files)
    return Imported(imported.model, imported.source + note, imported.licence)


def _hugging_face_options(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what the shapes do not tell, and refuse what our network does not do."""
    vision, text = config.get('vision_config') or {}, config.get('text_config') or {}
    expected: tuple[tuple[Any, str, Any], ...] = (
        (vision.get('hidden_act', 'quick_gelu'), 'vision_config.hidden_act', 'quick_gelu'),
        (text.get('hidden_act', 'quick_gelu'), 'text_config.hidden_act', 'quick_gelu'),
        (vision.get('layer_norm_eps', 1e-5), 'vision_config.layer_norm_eps', 1e-5),
        (text.get('layer_norm_eps', 1e-5), 'text_config.layer_norm_eps', 1e-5),
        (config.get('conditional_layer', 0), 'conditional_layer', 0))
    for value, name, known in expected:
        if value != known:
            raise BundleError(f'{path} has {name} = {value!r}; only {known!r} is known, as in '
                              f'every published CLIPSeg')
    return {'extract': tuple(config.get('extract_layers', EXTRACT)),
            'vision_heads': vision.get('num_attention_heads', 12),
            'text_heads': text.get('num_attention_heads', 8),
            'decoder_heads': config.get('decoder_num_attention_heads', 4)}


def _from_hugging_face(state: State) -> State:
    """Rename Hugging Face's tensors to ours, join q, k and v, transpose the projections."""
    renamed: State = {}
    for key, value in state.items():
        # The first converter's prefix.
        name = re.sub(r'^clipseg\.', 'clip.', key)
        for theirs, ours in _HF_NAMES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                parts = _HF_DECODER_PARTS if ours == 'blocks.' else _HF_TOWER_PARTS
                for their_part, our_part in parts if theirs.endswith('layers.') else ():
                    name = name.replace(their_part, our_part)
                break
        renamed[name] = value
    for name in [name for name in renamed if '.q_proj.' in name]:
        three = [name.replace('.q_proj.', f'.{part}_proj.') for part in _QKV]
        if all(part in renamed for part in three):
            joined = torch.cat([renamed.pop(part) for part in three])
            renamed[name.replace('.q_proj.', '.in_proj_')] = joined
    for name in ('text_projection', 'visual.proj'):
        if name in renamed:
            renamed[name] = renamed[name].T.contiguous()
    return renamed


def _openai_clip() -> State:
    """Let open_clip fetch OpenAI's CLIP ViT-B/16."""
    import open_clip

    try:
        model = open_clip.create_model('ViT-B-16-quickgelu', pretrained=CLIP_BY_NAME)
    except Exception as error:  # as above
        raise BundleError(f'open_clip cannot fetch CLIP: {error}. Without a network, give the '
                          'file by --clip') from error
    return dict(model.state_dict())


def _check_is_vit(state: State, path: Path) -> None:
    if 'visual.conv1.weight' in state and 'visual.class_embedding' in state:
        return
    if any(key.startswith('visual.layer1') for key in state):
        kind = 'a CLIP with a ResNet'
    elif any('vision_model.' in key for key in state):
        kind = "in Hugging Face's format"
    else:
        kind = f'not an image and text CLIP (it has {some(state)})'
    raise BundleError(f"{path} is {kind}; give OpenAI's CLIP ViT-B/16 in OpenAI's or open_clip's "
                      'format')


def _build(state: State, source: str, input_size_px: int, *,
           extract: tuple[int, ...] = EXTRACT, vision_heads: int | None = None,
           text_heads: int | None = None, decoder_heads: int = 4) -> ClipSeg:
    """Make the network that the shapes ask for and load every tensor into it.

    Heads are not in the shapes; None is CLIP's rule of 64 channels a head.
    """
    config = _config_of(state, source, input_size_px, extract=extract, vision_heads=vision_heads,
                        text_heads=text_heads, decoder_heads=decoder_heads)
    used = {key: value for key, value in state.items() if not _is_unused(key, config)}
    model = ClipSeg(config).eval()
    expected = model.state_dict()
    missing, unexpected = sorted(set(expected) - set(used)), sorted(set(used) - set(expected))
    if missing or unexpected:
        raise BundleError(
            f'{source} does not fit CLIPSeg {config.variant}. Missing: '
            f'{some(missing)}. Not expected: {some(unexpected)}. Give unchanged published '
            'files')
    for key, weight in expected.items():
        if used[key].shape != weight.shape:
            raise BundleError(
                f'{source}: {key} has the shape {tuple(used[key].shape)} where '
                f'{tuple(weight.shape)} is expected; the decoder and the CLIP do not belong '
                "together. Published decoders need OpenAI's ViT-B/16")
    model.load_state_dict({key: value.float() for key, value in used.items()})
    return model


def _config_of(state: State, source: str, input_size_px: int, *, extract: tuple[int, ...],
               vision_heads: int | None, text_heads: int | None,
               decoder_heads: int) -> ClipSegConfig:
    """Read the sizes, and with them the variant, from the shapes."""
    def length(key: str, axis: int = 0) -> int:
        if key not in state or axis >= state[key].ndim:
            raise BundleError(f'{source} is not a whole CLIPSeg: it has no usable {key}. It has '
                              f'{some(state)}')
        return state[key].shape[axis]

    depth = {len(re.findall(r'reduces\.\d+\.weight', '\n'.join(state)))}
    if depth != {len(extract)}:
        raise BundleError(f'{source} projects {depth.pop()} layers of the image tower, where '
                          f'{len(extract)} are extracted; this is not a published CLIPSeg')
    vision_width, text_width = length('visual.conv1.weight'), length('ln_final.weight')
    patches = length('visual.positional_embedding') - 1
    block, text_block = 'visual.transformer.resblocks.0', 'transformer.resblocks.0'
    return ClipSegConfig(
        input_size_px=input_size_px,
        patch_size_px=length('visual.conv1.weight', 3),
        pretrain_grid=math.isqrt(patches),
        vision_width=vision_width,
        vision_heads=vision_heads or max(vision_width // _HEAD_WIDTH, 1),
        vision_layers=extract[-1] + 1,
        vision_mlp=length(f'{block}.mlp.c_fc.weight'),
        extract=extract,
        embed_dim=length('text_projection', 1),
        text_width=text_width,
        text_heads=text_heads or max(text_width // _HEAD_WIDTH, 1),
        text_layers=len(re.findall(r'^transformer\.resblocks\.\d+\.ln_1\.weight$',
                                   '\n'.join(state), re.MULTILINE)),
        text_mlp=length(f'{text_block}.mlp.c_fc.weight'),
        vocab_size=length('token_embedding.weight'),
        context_length=length('positional_embedding'),
        reduce_dim=length('reduces.0.weight'),
        decoder_heads=decoder_heads,
        decoder_ffn=length('blocks.0.linear1.weight'),
        head='complex' if 'trans_conv.0.weight' in state else 'simple')


def _is_unused(key: str, config: ClipSegConfig) -> bool:
    block = _BLOCK.match(key)
    return bool(_UNUSED.fullmatch(key)) or (
        block is not None and int(block[1]) >= config.vision_layers)


def _imported(model: ClipSeg, files: list[Path]) -> Imported:
    """Name the files and, where they are published ones, their licences."""
    notes, licences = [], []
    for path in files:
        sha256 = sha256_of(path)
        what, licence = PUBLISHED.get(sha256, ('', ''))
        notes.append(f'{path.name} (SHA-256 {sha256}{", the " + what if what else ""})')
        licences += [f'{path.name}: {licence}'] if licence else []
    return Imported(model, ', '.join(notes), '; '.join(licences) or
                    'unknown; ask where the weights come from')
