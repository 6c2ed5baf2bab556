# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower, as several families use it, on open_clip."""

from typing import Any, Protocol

import torch
from open_clip.model import _build_text_tower
from torch import Tensor, nn


class TextSizes(Protocol):
    """The sizes of a text tower, as a family's configuration has them."""

    @property
    def embed_dim(self) -> int:
        """Return the length of what it answers."""

    @property
    def context_length(self) -> int:
        """Return the number of tokens of a text."""

    @property
    def vocab_size(self) -> int:
        """Return the number of different tokens."""

    @property
    def text_width(self) -> int:
        """Return the width of a token."""

    @property
    def text_heads(self) -> int:
        """Return the number of attention heads."""

    @property
    def text_layers(self) -> int:
        """Return the number of blocks."""

    @property
    def text_mlp(self) -> int:
        """Return the hidden width of a block."""


class TextTower(nn.Module):
    """CLIP's text tower alone, with OpenAI's names."""

    causal_mask: Tensor

    def __init__(self, sizes: TextSizes) -> None:
        """Create the tower with open_clip's initial weights."""
        super().__init__()
        # The published CLIP was trained with the quick GELU.
        tower = _build_text_tower(sizes.embed_dim, text_cfg(sizes), quick_gelu=True)
        self.transformer = tower.transformer
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_buffer('causal_mask', causal_mask(sizes.context_length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts; see `encode_tokens`."""
        return encode_tokens(self, tokens)


def encode_tokens(tower: Any, tokens: Tensor) -> Tensor:
    """Encode texts.

    Args:
        tower: `TextTower`, or a network that has its attributes.
        tokens: int [P, T], zero-padded; T is at most the context length, and what follows the end
            token changes nothing.

    Returns:
        float [P, D], not normalised.
    """
    length = tokens.shape[1]
    position, mask = tower.positional_embedding, tower.causal_mask
    if length < len(position):
        position, mask = position[:length], mask[:length, :length]
    x = tower.transformer(tower.token_embedding(tokens) + position, attn_mask=mask)
    # The end-of-text token has the highest id. What follows is padding, never looked at. Float32
    # holds every id exactly, and ONNX Runtime on CUDA has no ArgMax of integers.
    end = tokens.to(torch.float32).argmax(dim=-1)
    x = x[torch.arange(x.shape[0], device=x.device), end]
    return tower.ln_final(x) @ tower.text_projection


def causal_mask(length: int) -> Tensor:
    """Return what is added to the attention scores: no token looks at a later one."""
    return torch.full((length, length), float('-inf')).triu_(1)


def text_cfg(sizes: TextSizes) -> dict[str, Any]:
    """Return the sizes in open_clip's words."""
    return {
        'context_length': sizes.context_length,
        'vocab_size': sizes.vocab_size,
        'width': sizes.text_width,
        'heads': sizes.text_heads,
        'layers': sizes.text_layers,
        'mlp_ratio': exact_ratio(sizes.text_mlp, sizes.text_width),
        # Same weights and names as the default block, but its attention is open_clip's own
        # module: batch-first, and it exports without the detours of torch's.
        'block_type': 'custom',
    }


def exact_ratio(hidden: int, width: int) -> float:
    """Return the ratio that open_clip multiplies and truncates back to exactly `hidden`."""
    return (hidden + 0.5) / width
