# SPDX-License-Identifier: Apache-2.0
"""FPSeg as it is published, for comparison: eager torch, every class from the start, full masks.

The weights are those of our network, the arithmetic SAM's: the embedding is repeated for each
class, attention writes its scores, keys and values are projected for each class, and each class's
mask is enlarged to the size of the image and then compared with 0.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.mask_decoder import Attention, TwoWayLayer


def plain_masks(model: FpSeg, image: Tensor, classes: list[int],
                size: tuple[int, int]) -> Tensor:
    """Segment one image.

    Args:
        model: with its batch norms.
        image: uint8 [3, S, S], already at the input size, on the model's device.
        classes: rows of the model's prompts.
        size: (height, width) of the masks.

    Returns:
        bool [n, height, width].
    """
    config = model.config
    mean = 255 * torch.tensor(config.mean, device=image.device)[:, None, None]
    std = 255 * torch.tensor(config.std, device=image.device)[:, None, None]
    with sdpa_kernel(SDPBackend.MATH):
        embedding = model.encode_images(((image - mean) / std)[None])
        logits = plain_logits(model, embedding, model.prompt_encoder.prompt_embeddings[classes])
    side = config.input_size_px
    logits = functional.interpolate(logits[None], (side, side), mode='bilinear')
    return (functional.interpolate(logits, size, mode='bilinear') > 0)[0]


def plain_logits(model: FpSeg, embedding: Tensor, tokens: Tensor) -> Tensor:
    """Decode classes [n, P, C] of one embedding [1, C, g, g]: logits [n, 4 g, 4 g]."""
    decoder, encoder = model.mask_decoder, model.prompt_encoder
    count, grid = len(tokens), embedding.shape[-1]
    image = embedding.repeat(count, 1, 1, 1) + encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    image = image.flatten(2).transpose(1, 2)
    position = encoder.position(grid).repeat(count, 1, 1)
    mask_token = decoder.mask_tokens.weight.expand(count, 1, -1)
    tokens = torch.cat((mask_token, tokens), dim=1)
    queries = tokens
    layers = cast(Iterable[TwoWayLayer], decoder.transformer.layers)
    for index, layer in enumerate(layers):
        queries, image = _layer(layer, queries, image, tokens, position, first=index == 0)
    final = decoder.transformer.final_attn_token_to_image
    queries = queries + _attention(final, queries + tokens, image + position, image)
    queries = decoder.transformer.norm_final_attn(queries)
    pixels = decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (grid, grid)))
    weights = decoder.output_hypernetworks_mlps[0](queries[:, 0])
    return (weights[:, None] @ pixels.flatten(2)).reshape(count, 4 * grid, 4 * grid)


def _layer(layer: TwoWayLayer, queries: Tensor, image: Tensor, tokens: Tensor, position: Tensor,
           first: bool) -> tuple[Tensor, Tensor]:
    if first:
        queries = _attention(layer.self_attn, queries, queries, queries)
    else:
        placed = queries + tokens
        queries = queries + _attention(layer.self_attn, placed, placed, queries)
    queries = layer.norm1(queries)
    queries = layer.norm2(queries + _attention(
        layer.cross_attn_token_to_image, queries + tokens, image + position, image))
    queries = layer.norm3(queries + layer.mlp(queries))
    image = layer.norm4(image + _attention(
        layer.cross_attn_image_to_token, image + position, queries + tokens, queries))
    return queries, image


def _attention(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = (attention.heads, -1)
    query = attention.q_proj(query).unflatten(-1, heads).transpose(1, 2)
    key = attention.k_proj(key).unflatten(-1, heads).transpose(1, 2)
    value = attention.v_proj(value).unflatten(-1, heads).transpose(1, 2)
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    found = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    return attention.out_proj(found)
