# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg in torch, on open_clip's towers.

Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022. Three stages with
a value between them that is worth keeping:

    encode_image: pixels -> code      depends on the frame alone
    encode_text, film: tokens -> FiLM pair      depends on the prompt alone
    decode: code, FiLM pairs -> logits      all prompts against one frame, as a batch

The three projections of the image tower's activations to the decoder's width do not depend on the
prompt, so they are part of the image code.
"""

import math
from collections.abc import Sequence

import torch
from open_clip.model import CLIP
from open_clip.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.clipseg_config import ClipSegConfig, check_input_size
from blabberseg_ros.models.text_tower import encode_tokens, exact_ratio, text_cfg


class DecoderBlock(nn.Module):
    """Transformer block with the norms after the sums and a ReLU, as torch's own default."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Create a block with torch's names, so that published weights fit."""
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, T, width] to tokens of the same shape."""
        x = self.norm1(x + self.self_attn(x))
        # All tokens in one matrix: ONNX Runtime joins product, bias and ReLU of matrices alone,
        # and the hidden layer is the largest tensor of the whole network.
        tokens, width = x.shape[1:]
        hidden = functional.relu(self.linear1(x.reshape(-1, width)))
        return self.norm2(x + self.linear2(hidden).reshape(-1, tokens, width))


class ClipSeg(nn.Module):
    """CLIPSeg: text-prompted segmentation with one logit a pixel and prompt.

    Letters in shapes: B images, P prompts, S input side, T = (S / patch)² + 1 tokens (class token
    first), L extracted layers (3), r decoder width, D length of a conditional.
    """

    # The networks alone: no engine resizes images, and none encodes text, in half precision.
    half_methods = ('encode_image', 'decode')

    def __init__(self, config: ClipSegConfig) -> None:
        """Create the network with open_clip's and torch's initial weights."""
        super().__init__()
        self.config = config
        towers = _towers(config)
        self.visual = towers.visual
        self.transformer = towers.transformer
        self.token_embedding = towers.token_embedding
        self.positional_embedding = towers.positional_embedding
        self.ln_final = towers.ln_final
        self.text_projection = towers.text_projection
        self.register_buffer('causal_mask', towers.attn_mask, persistent=False)

        width = config.reduce_dim
        self.film_mul = nn.Linear(config.embed_dim, width)
        self.film_add = nn.Linear(config.embed_dim, width)
        self.reduces = nn.ModuleList(
            nn.Linear(config.vision_width, width) for _ in config.extract)
        self.blocks = nn.ModuleList(
            DecoderBlock(width, config.decoder_heads, config.decoder_ffn) for _ in config.extract)
        self.trans_conv = _head(config)
        self._position_cache: dict[tuple[int, int, int], Tensor] = {}

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode prompts.

        Args:
            tokens: int [P, 77], zero-padded.

        Returns:
            Conditionals, float [P, D], not normalised: FiLM needs their length.
        """
        return encode_tokens(self, tokens)

    def film(self, conditional: Tensor) -> tuple[Tensor, Tensor]:
        """Turn conditionals [P, D] into the decoder's FiLM pairs, each [P, r]."""
        return self.film_mul(conditional), self.film_add(conditional)

    def position_embedding(self, grid: int) -> Tensor:
        """Return the position embedding for `grid` × `grid` patches, [grid² + 1, width].

        The class token's row is kept, the others are resized bicubically, not antialiased. Without
        gradients the result is kept until the weights change.
        """
        weight = self.visual.positional_embedding
        if torch.is_grad_enabled():
            return self._resized_position_embedding(grid)
        key = (grid, weight.data_ptr(), weight._version)
        if key not in self._position_cache:
            self._position_cache = {key: self._resized_position_embedding(grid)}
        return self._position_cache[key]

    def activations(self, pixels: Tensor, position: Tensor | None = None) -> list[Tensor]:
        """Run the image tower as far as the last extracted block.

        Args:
            pixels: float [B, 3, S, S], normalised with the configuration's mean and std; S is any
                multiple of the patch size.
            position: position embedding for this S, when the caller has it already.

        Returns:
            Output of each extracted block, float [B, T, vision width], in the order of `extract`.

        Raises:
            BundleError: S cannot be cut into patches.
        """
        size_px = pixels.shape[-1]
        check_input_size(size_px, self.config.patch_size_px)
        if position is None:
            position = self.position_embedding(size_px // self.config.patch_size_px)
        patches = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        return self.activations_of_patches(patches, position)

    def activations_of_patches(self, patches: Tensor, position: Tensor) -> list[Tensor]:
        """Run the image tower on embedded patches, float [B, T - 1, width]; see `activations`."""
        visual = self.visual
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
        x = visual.ln_pre(torch.cat((class_token, patches), dim=1) + position)
        _, extracted = visual.transformer.forward_intermediates(
            x, indices=list(self.config.extract))
        return extracted

    def encode_images(self, pixels: Tensor, position: Tensor | None = None) -> Tensor:
        """Encode a batch of images, float [B, 3, S, S] (see `activations`).

        Returns:
            Codes, float [B, L, T, r], deepest layer first: the order in which the decoder
            takes them.
        """
        return self.code_of(self.activations(pixels, position))

    def code_of(self, activations: Sequence[Tensor]) -> Tensor:
        """Reduce activations, each [B, T, vision width], to codes [B, L, T, r], deepest first."""
        return torch.stack([reduce(x) for reduce, x in
                            zip(self.reduces, reversed(activations), strict=True)], dim=1)

    def encode_image(self, pixels: Tensor, position: Tensor | None = None) -> Tensor:
        """Encode one image, float [1, 3, S, S], as a code [L, T, r]."""
        return self.encode_images(pixels, position)[0]

    def decode(self, code: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Segment one image for all prompts.

        Args:
            code: float [L, T, r] from `encode_image`.
            mul: float [P, r] from `film`.
            add: float [P, r] from `film`.

        Returns:
            Logits, float [P, S, S].
        """
        return self.trans_conv(self.decode_features(code, mul, add)).squeeze(1)

    def decode_features(self, code: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Run the decoder without its head; arguments as for `decode`.

        Returns:
            Features, float [P, r, grid, grid].
        """
        first, *others = code.unbind(0)
        return self._features(mul[:, None] * first + add[:, None], others)

    def decode_batch(self, codes: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Segment a batch of images, each for prompts of its own.

        Args:
            codes: float [B, L, T, r] from `encode_images`.
            mul: float [B, P, r] from `film`.
            add: float [B, P, r] from `film`.

        Returns:
            Logits, float [B, P, S, S].
        """
        features = self.decode_features_batch(codes, mul, add)
        return self.trans_conv(features).squeeze(1).unflatten(0, (-1, mul.shape[1]))

    def decode_features_batch(self, codes: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Run the decoder without its head; arguments as for `decode_batch`.

        Returns:
            Features, float [B * P, r, grid, grid].
        """
        first = mul[:, :, None] * codes[:, None, 0] + add[:, :, None]
        others = codes[:, 1:].repeat_interleave(mul.shape[1], dim=0).unbind(1)
        return self._features(first.flatten(0, 1), others)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Segment images [B, 3, S, S] for prompts [P, 77], the same for all: [B, P, S, S]."""
        mul, add = self.film(self.encode_text(tokens))
        shape = (len(pixels), *mul.shape)
        return self.decode_batch(
            self.encode_images(pixels), mul.expand(shape), add.expand(shape))

    def _features(self, x: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Run the blocks on modulated tokens x [N, T, r], adding `others`, each [(N,) T, r]."""
        x = self.blocks[0](x)
        for block, other in zip(list(self.blocks)[1:], others, strict=True):
            x = block(other + x)
        tokens, width = x.shape[1:]
        grid = math.isqrt(tokens - 1)
        return x[:, 1:].transpose(1, 2).reshape(-1, width, grid, grid)

    def _resized_position_embedding(self, grid: int) -> Tensor:
        weight = self.visual.positional_embedding
        own_grid = self.config.pretrain_grid
        if grid == own_grid:
            return weight
        image = weight[1:].T.reshape(1, -1, own_grid, own_grid)
        image = functional.interpolate(image, (grid, grid), mode='bicubic', align_corners=False)
        return torch.cat((weight[:1], image.flatten(2)[0].T))


def _towers(config: ClipSegConfig) -> CLIP:
    """Build open_clip's CLIP of these sizes, without the parts that CLIPSeg never runs."""
    towers = CLIP(
        config.embed_dim,
        vision_cfg={
            'image_size': config.pretrain_grid * config.patch_size_px,
            'patch_size': config.patch_size_px,
            'width': config.vision_width,
            'head_width': config.vision_width // config.vision_heads,
            'layers': config.vision_layers,
            'mlp_ratio': exact_ratio(config.vision_mlp, config.vision_width),
            # Same weights and names as the default block, but its attention is open_clip's own
            # module: batch-first, and it exports without the detours of torch's.
            'block_type': 'custom',
        },
        text_cfg=text_cfg(config),
        # The published CLIP was trained with it; open_clip's plain `ViT-B-16` has another GELU.
        quick_gelu=True)
    towers.visual.proj = None
    towers.visual.ln_post = nn.Identity()
    return towers


def _head(config: ClipSegConfig) -> nn.Module:
    """Return the layers that turn the decoder's tokens into logits at full resolution."""
    width, patch = config.reduce_dim, config.patch_size_px
    if config.head == 'simple':
        return nn.ConvTranspose2d(width, 1, patch, stride=patch)
    step = patch // 4
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width // 2, step, stride=step),
        nn.ReLU(),
        nn.ConvTranspose2d(width // 2, 1, step, stride=step))
