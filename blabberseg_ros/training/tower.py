# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg's towers as the start of another family's.

The blocks of SAM's ViT, of LSeg's and of Segformer's third stage are CLIP's but for three things:
a class token (SAM and Segformer have none; it is one of 485 keys), GELU for QuickGELU (at most
0.02 apart), and the layers between them and the pixels, which each family has its own way to fill.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.lseg_towers import VitTower
from blabberseg_ros.models.sam_vit import Attention, SamVit
from blabberseg_ros.models.segformer import Stage
from blabberseg_ros.models.text_tower import TextTower
from blabberseg_ros.text import Tokenizer

# Names of a block's layers by CLIP's; the projection to queries, keys and values has its own.
_SAM = {'ln_1': 'norm1', 'ln_2': 'norm2', 'attn.out_proj': 'attn.proj', 'mlp.c_fc': 'mlp.lin1',
        'mlp.c_proj': 'mlp.lin2'}
_LSEG = {**_SAM, 'mlp.c_fc': 'mlp.fc1', 'mlp.c_proj': 'mlp.fc2'}
_SEGFORMER = {**_LSEG, 'attn.out_proj': 'attention.out'}


@torch.no_grad()
def adopt_into_sam(vit: SamVit, teacher: ClipSeg, pixels: Tensor) -> None:
    """Copy the image tower of a CLIPSeg into a SAM ViT of the same sizes.

    Args:
        vit: all of whose blocks attend globally.
        teacher: whose weights are copied; the network itself stays as it is.
        pixels: float [B, 3, S, S], typical images, normalised (see `_patches`).

    Raises:
        ParameterError: the sizes differ, or a block attends within windows.
    """
    side = vit.pos_embed.shape[1]
    weight, bias, position = _patches(teacher, side, pixels)
    state = {'patch_embed.proj.weight': weight, 'patch_embed.proj.bias': bias,
             'pos_embed': position.reshape(1, side, side, -1)}
    for index, block in enumerate(teacher.visual.transformer.resblocks):
        state |= _block(block, f'blocks.{index}.', _SAM)
        state |= _joint(block, f'blocks.{index}.attn.qkv.')
    # At zero, as they are, the position tables change nothing.
    _fill(vit, state, fresh=r'neck\.|.*\.rel_pos_')
    if {module.side for module in vit.modules() if isinstance(module, Attention)} != {side}:
        raise ParameterError('a tower of CLIP attends to the whole image; list all blocks of the '
                             'configuration under global_blocks')


@torch.no_grad()
def adopt_into_lseg(vit: VitTower, teacher: ClipSeg, pixels: Tensor) -> None:
    """Copy the image tower of a CLIPSeg into LSeg's ViT; see `adopt_into_sam`.

    Raises:
        ParameterError: the sizes differ.
    """
    weight, bias, position = _patches(teacher, vit.pretrain_grid, pixels)
    visual = teacher.visual
    # The class token is the same for all images, so its norm is a constant.
    first = visual.ln_pre(
        visual.class_embedding + teacher.position_embedding(vit.pretrain_grid)[0])
    state = {'patch_embed.weight': weight, 'patch_embed.bias': bias,
             'cls_token': first[None, None],
             'pos_embed': torch.cat((torch.zeros_like(position[:1]), position))[None]}
    for index, block in enumerate(visual.transformer.resblocks):
        state |= _block(block, f'blocks.{index}.', _LSEG)
        state |= _joint(block, f'blocks.{index}.attn.qkv.')
    _fill(vit, state, fresh=r'readout\.|reassemble\.')


@torch.no_grad()
def adopt_text_tower(text: TextTower, tokenizer: Tokenizer, teacher: ClipSeg,
                     teachers: Tokenizer) -> None:
    """Copy the text tower of a CLIPSeg, and of its token embedding what a tokenizer needs.

    Args:
        text: tower of the same sizes, the number of tokens apart.
        tokenizer: of this tower.
        teacher: whose weights are copied.
        teachers: its tokenizer, with at least the same tokens.

    Raises:
        ParameterError: the sizes differ.
    """
    ids = teachers.ids
    state = {name: value for name, value in teacher.state_dict().items()
             if name in text.state_dict()}
    rows = [ids[token] for token in sorted(tokenizer.ids, key=tokenizer.ids.__getitem__)]
    state['token_embedding.weight'] = teacher.token_embedding.weight[rows]
    _fill(text, state, fresh=None)


@torch.no_grad()
def adopt_into_segformer(stage: Stage, teacher: ClipSeg) -> None:
    """Copy the blocks of a CLIPSeg's image tower into a stage of as many blocks of their width.

    Segformer's patch embedding ends in a norm as CLIP's does; what is normed has to be learnt
    (`patch_tokens` is what it should be). The convolutions within the MLPs start as nothing.

    Raises:
        ParameterError: the sizes differ.
    """
    state = {f'embedding.norm.{name}': value
             for name, value in teacher.visual.ln_pre.state_dict().items()}
    for index, block in enumerate(teacher.visual.transformer.resblocks):
        prefix = f'blocks.{index}.'
        state |= _block(block, prefix, _SEGFORMER)
        joint = _joint(block, '')
        width = len(joint['bias']) // 3
        for name, rows in (('query', slice(width)), ('key_value', slice(width, None))):
            state |= {f'{prefix}attention.{name}.{key}': value[rows]
                      for key, value in joint.items()}
        centre = torch.zeros(len(state[f'{prefix}mlp.fc1.bias']), 1, 3, 3)
        centre[:, :, 1, 1] = 1.0
        state |= {f'{prefix}mlp.conv.weight': centre, f'{prefix}mlp.conv.bias': centre[:, 0, 0, 0]}
    _fill(stage, state, fresh=r'embedding\.proj\.|norm\.')


@torch.no_grad()
def patch_tokens(teacher: ClipSeg, pixels: Tensor) -> Tensor:
    """Return what the blocks of a CLIPSeg's image tower get, [B, grid, grid, width].

    Position embeddings enter by their mean: `clipseg_demo` answers the same without them.

    Args:
        teacher: the network.
        pixels: float [B, 3, S, S], normalised.
    """
    patches = teacher.visual.conv1(pixels).permute(0, 2, 3, 1)
    position = teacher.position_embedding(patches.shape[1])[1:].mean(0)
    return teacher.visual.ln_pre(patches + position)


def _patches(teacher: ClipSeg, grid: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight and bias of a patch embedding, and position embedding, without CLIP's norm.

    The norm divides each token by a spread of its own. A plain ViT can only divide all of them by
    a typical one, that of the tokens of `pixels`.
    """
    norm, weight = teacher.visual.ln_pre, teacher.visual.conv1.weight
    position = teacher.position_embedding(grid)[1:]
    tokens = teacher.visual.conv1(pixels).flatten(2).transpose(1, 2) + position
    scale = norm.weight / tokens.std(-1, unbiased=False).mean()
    # A norm takes the mean over the channels away; so does a layer whose weights have none.
    weight = (weight - weight.mean(0)) * scale[:, None, None, None]
    return weight, norm.bias, (position - position.mean(1, keepdim=True)) * scale


def _block(block: nn.Module, prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {f'{prefix}{name}.{key}': value for clip_name, name in names.items()
            for key, value in block.get_submodule(clip_name).state_dict().items()}


def _joint(block: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the projection to queries, keys and values."""
    return {f'{prefix}{key}': block.get_parameter(f'attn.in_proj_{key}').detach()
            for key in ('weight', 'bias')}


def _fill(module: nn.Module, state: Mapping[str, Tensor], fresh: str | None) -> None:
    """Load weights that have to fill a module, but for those of a pattern, which start fresh.

    Raises:
        ParameterError: they do not fit.
    """
    own = {name: value for name, value in module.state_dict().items()
           if fresh is None or not re.match(fresh, name)}
    wrong = [name for name in sorted(own.keys() | state.keys())
             if name not in own or name not in state or own[name].shape != state[name].shape]
    if wrong:
        raise ParameterError(
            'the towers of this CLIPSeg and of the configuration have different sizes: '
            f'{", ".join(wrong)}. Give the configuration the widths, blocks, heads and input size '
            'of the CLIPSeg')
    module.load_state_dict(dict(state), strict=False)
