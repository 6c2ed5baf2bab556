# SPDX-License-Identifier: Apache-2.0
"""The stages of CLIPSeg as functions on CUDA tensors, for capture as CUDA graphs."""

from collections.abc import Callable
from typing import cast

import torch
from open_clip.transformer import Attention, CustomResidualAttentionBlock, QuickGELU
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines import cuda_kernels
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.engines.torch_family import without_padding
from blabberseg_ros.errors import EngineError
from blabberseg_ros.models.clipseg import ClipSeg, DecoderBlock
from blabberseg_ros.models.load_clipseg import load_clipseg

_DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16, 'fp32': torch.float32}
# The kernels are written for CLIP's patches: 16 x 16 pixels of three colours.
_PATCH_SIZE_PX = 16
_PATCH_VALUES = 3 * _PATCH_SIZE_PX ** 2

Stage = tuple[Callable[..., dict[str, Tensor]], list[TensorSpec], list[TensorSpec]]


class FusedAttention(nn.Module):
    """Self-attention whose softmax and products are one kernel."""

    def __init__(self, attention: Attention) -> None:
        """Take over the weights of open_clip's attention in fp16 or bf16."""
        super().__init__()
        self.attention = attention

    @staticmethod
    def fits(attention: Attention) -> bool:
        """Return whether the kernel takes heads of this size."""
        return cuda_kernels.fits_dot(attention.head_dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Map tokens [N, T, width] to tokens of the same shape; no image tower masks any."""
        if attn_mask is not None:
            raise NotImplementedError('the kernel takes no mask; use the plain layer')
        attention = self.attention
        qkv = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).contiguous()
        mixed = torch.empty(x.shape, dtype=qkv.dtype, device=x.device)
        cuda_kernels.attention(qkv, attention.num_heads, mixed)
        return attention.out_proj(mixed)


class FusedMlp(nn.Module):
    """The layers behind a block's attention; the first of them and its QuickGELU are fused."""

    # Rows up to which the kernel is used: one frame's. On an H200 it takes 8.6 us for them, and
    # torch 6.8 for the product and 3.3 for the activation, so batches are left to torch.
    most_rows = 1024

    def __init__(self, mlp: nn.Sequential) -> None:
        """Take over the weights of open_clip's layers in fp16 or bf16."""
        super().__init__()
        self.mlp = mlp
        self.c_fc = cast(nn.Linear, mlp[0])  # by its weight open_clip tells the block's type
        self.rest = mlp[2:]

    @staticmethod
    def fits(mlp: nn.Sequential) -> bool:
        """Return whether the kernel takes the first of these layers."""
        linear, activation = mlp[0], mlp[1]
        return (isinstance(linear, nn.Linear) and isinstance(activation, QuickGELU)
                and linear.in_features % cuda_kernels.TILE == 0
                and linear.out_features % cuda_kernels.WIDE_TILE == 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, T, width] to tokens of the same shape."""
        weight, bias = self.c_fc.weight, self.c_fc.bias
        rows = x.to(weight.dtype).flatten(0, 1).contiguous()
        if len(rows) > self.most_rows:
            return self.mlp(x)
        hidden = torch.empty((len(rows), len(weight)), dtype=weight.dtype, device=x.device)
        cuda_kernels.linear_quick_gelu(rows, weight, bias, hidden)
        return self.rest(hidden.unflatten(0, x.shape[:2]))


class FusedDecoderBlock(nn.Module):
    """A decoder block whose hidden layer stays within one kernel."""

    def __init__(self, block: DecoderBlock, parts: int) -> None:
        """Take over the weights of a block in fp16 or bf16.

        Args:
            block: whose sizes fit.
            parts: of the hidden layer that are summed at the same time.
        """
        super().__init__()
        self.block = block
        self.parts = parts
        self.bias1 = block.linear1.bias.float()
        self.bias2 = block.linear2.bias.float()

    @staticmethod
    def fits(block: DecoderBlock, parts: int) -> bool:
        """Return whether the kernel takes a block of these sizes."""
        hidden, width = block.linear1.weight.shape
        return hidden % (parts * cuda_kernels.TILE) == 0 and cuda_kernels.fits_dot(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens float32 [N, T, r] to tokens of the same shape."""
        block = self.block
        x = block.norm1(x + block.self_attn(x))
        tokens = x.to(block.linear1.weight.dtype).flatten(0, 1).contiguous()
        sums = torch.empty((self.parts, *tokens.shape), dtype=torch.float32, device=x.device)
        cuda_kernels.feed_forward(
            tokens, block.linear1.weight, self.bias1, block.linear2.weight, sums)
        return block.norm2(x + (sums.sum(0) + self.bias2).view(x.shape))


class CudaStages:
    """A bundle's network on the device, in one precision.

    Matrix products run in the precision, sums along the residual stream, norms and softmax in
    fp32 (torch's autocast rules): a ViT in plain fp16 overflows in its norms.

    Attributes:
        model: the network.
        dtype: of matrix products.
        hidden_parts: see `FusedDecoderBlock`. On an H200 four make three programs for each
            multiprocessor out of a frame with thirteen prompts.
    """

    hidden_parts = 4

    def __init__(self, bundle: Bundle, precision: str, compiled: bool) -> None:
        """Load the network.

        Raises:
            BundleError: the weights do not fit.
        """
        self.model: ClipSeg = load_clipseg(bundle).cuda()
        self.dtype = _DTYPES[precision]
        config = self.model.config
        std = torch.tensor(config.std, device='cuda')
        self._scale = 1.0 / (255.0 * std)
        self._offset = torch.tensor(config.mean, device='cuda') / std
        with torch.no_grad():
            self._position = self.model.position_embedding(config.grid).clone()
        self._bands: dict[int, cuda_kernels.Band] = {}
        self._head = self._fused_head()
        self._convert_weights()
        if self.dtype != torch.float32:
            self._fuse_layers()
        self._encode = self._wrapped(self._encode_patches, compiled, dynamic=False)
        self._tokens = self._wrapped(self._decode_tokens, compiled, dynamic=None)

    def stage(self, name: str) -> Stage:
        """Return a stage's function and what it takes and gives.

        Raises:
            EngineError: there is no such stage.
        """
        config = self.model.config
        side, width, count = config.input_size_px, config.reduce_dim, config.tokens
        code = TensorSpec('code', 'float32', (len(config.extract), count, width))
        pair = [TensorSpec(name, 'float32', ('prompts', width)) for name in ('mul', 'add')]
        rows = TensorSpec('rows', 'float32', ('height', side))
        cols = TensorSpec('cols', 'float32', (side, 'width'))
        stages: dict[str, Stage] = {
            'image_encoder': (self.encode_image, [
                TensorSpec('image', 'uint8', ('height', 'width', 3)),
                TensorSpec('rows', 'float32', (side, 'height')),
                TensorSpec('cols', 'float32', ('width', side))], [code]),
            'text_encoder': (self.encode_text, [TensorSpec('tokens', 'int32', ('prompts', 77))],
                             [TensorSpec('conditional', 'float32',
                                         ('prompts', config.embed_dim))]),
            'film': (self.film, [TensorSpec('conditional', 'float32',
                                            ('prompts', config.embed_dim))], pair),
            'decoder': (self.decode, [code, *pair],
                        [TensorSpec('logits', 'float32', ('prompts', side, side))]),
            'answer': (self.answer, [
                code, *pair, TensorSpec('positive', 'float32', ('prompts',)), rows, cols,
                TensorSpec('thresholds', 'float32', (101,)), TensorSpec('wanted', 'int32', (2,))],
                [TensorSpec('probability', 'float32', ('height', 'width')),
                 TensorSpec('mask', 'uint8', ('height', 'width')),
                 TensorSpec('found', 'int32', (2,))]),
        }
        if name not in stages:
            raise EngineError(f'torch has no stage {name!r}; it has {", ".join(stages)}')
        return stages[name]

    def encode_image(self, image: Tensor, rows: Tensor, cols: Tensor) -> dict[str, Tensor]:
        """Resize, normalise and encode one frame."""
        height, width, _ = image.shape
        config = self.model.config
        narrow = torch.empty((height, config.input_size_px, 3), device=image.device)
        patches = torch.empty((config.grid ** 2, _PATCH_VALUES), dtype=self.dtype,
                              device=image.device)
        cuda_kernels.resize_and_normalise(
            image, rows, cols, self._band(height), self._band(width), self._scale, self._offset,
            narrow, patches)
        with self._autocast():
            return {'code': self._encode(patches).float()}

    def _encode_patches(self, patches: Tensor) -> Tensor:
        """Embed the patches, run the tower and reduce: [T - 1, 768] to [L, T, r]."""
        embedded = functional.linear(patches, self.model.visual.conv1.weight.flatten(1))
        activations = self.model.activations_of_patches(embedded[None], self._position)
        return self.model.code_of(activations)[0]

    def encode_text(self, tokens: Tensor) -> dict[str, Tensor]:
        """Encode prompts, in fp32: they are cached, and fp16 text towers are known to overflow."""
        return {'conditional': self.model.encode_text(tokens)}

    def film(self, conditional: Tensor) -> dict[str, Tensor]:
        """Turn conditionals into FiLM pairs, in fp32."""
        mul, add = self.model.film(conditional)
        return {'mul': mul, 'add': add}

    def decode(self, code: Tensor, mul: Tensor, add: Tensor) -> dict[str, Tensor]:
        """Return the logits themselves."""
        with self._autocast():
            return {'logits': self.model.decode(code, mul, add).float()}

    def answer(self, code: Tensor, mul: Tensor, add: Tensor, positive: Tensor, rows: Tensor,
               cols: Tensor, thresholds: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Decode, fuse, blur, resize, find the threshold and cut the mask."""
        small = self._positive_probability(code, mul, add, positive)
        probability = torch.empty((rows.shape[0], cols.shape[1]), device=code.device)
        cuda_kernels.stretch(small, rows, cols, probability)
        mask = torch.empty(probability.shape, dtype=torch.uint8, device=code.device)
        found = torch.empty(2, dtype=torch.int32, device=code.device)
        cuda_kernels.threshold_mask(probability, thresholds, wanted,
                                    cuda_kernels.empty_bins(code.device), mask, found)
        return {'probability': probability, 'mask': mask, 'found': found}

    def _positive_probability(self, code: Tensor, mul: Tensor, add: Tensor,
                              positive: Tensor) -> Tensor:
        """Return float32 [S, S] without writing the logits where the head allows it."""
        if self._head is None:
            logits = self.decode(code, mul, add)['logits']
            weight = without_padding(logits, positive).softmax(0)
            return (positive[:, None, None] * weight).sum(0)
        with self._autocast():
            tokens = self._tokens(code, mul, add)
        side = self.model.config.input_size_px
        small = torch.empty((side, side), dtype=torch.float32, device=code.device)
        cuda_kernels.head_and_softmax(tokens, *self._head, positive, small)
        return small

    def _decode_tokens(self, code: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Run the decoder as far as the head's first convolution: [P, grid², r]."""
        image = self.model.decode_features(code, mul, add)
        features = functional.relu(self._mixing(image))
        return features.to(self.dtype).flatten(2).transpose(1, 2).contiguous()

    def _convert_weights(self) -> None:
        """Convert the matrices of the image path once; autocast would do it for every frame.

        Norms keep fp32, and so does the text tower: its results are cached, and fp16 text towers
        are known to overflow.
        """
        for part in (self.model.visual, self.model.reduces, self.model.blocks,
                     self.model.trans_conv):
            for module in part.modules():
                if isinstance(module, nn.LayerNorm):
                    continue
                for name, weight in module.named_parameters(recurse=False):
                    if name not in ('class_embedding', 'positional_embedding'):
                        weight.data = weight.data.to(self.dtype)

    def _fuse_layers(self) -> None:
        """Give the layers of the image path to our kernels where those take their sizes."""
        for owner in (self.model.visual, self.model.blocks):
            for parent in list(owner.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, Attention) and FusedAttention.fits(child):
                        setattr(parent, name, FusedAttention(child))
        for block in self.model.visual.modules():
            if isinstance(block, CustomResidualAttentionBlock) and FusedMlp.fits(block.mlp):
                block.mlp = FusedMlp(block.mlp)
        self.model.blocks = nn.ModuleList(
            FusedDecoderBlock(block, self.hidden_parts)
            if isinstance(block, DecoderBlock) and FusedDecoderBlock.fits(block, self.hidden_parts)
            else block for block in self.model.blocks)

    def _fused_head(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Return the weights of the complex head for the fused kernel; None if it cannot run."""
        config, head = self.model.config, self.model.trans_conv
        half = config.reduce_dim // 2
        fits = (config.patch_size_px == _PATCH_SIZE_PX and self.dtype != torch.float32
                and cuda_kernels.fits_dot(half))
        if not isinstance(head, nn.Sequential) or not fits:
            return None
        self._mixing = head[0]
        first, second = head[2], head[4]
        # [in, out, 4, 4] to [sub-patch, in, out]: each token's sub-patch is a product of its own.
        weight1 = first.get_parameter('weight').permute(2, 3, 0, 1).reshape(
            16, config.reduce_dim, half)
        weight2 = second.get_parameter('weight').reshape(half, 16)
        return ((weight1.to(self.dtype).contiguous(), first.get_parameter('bias').clone()),
                (weight2.to(self.dtype).contiguous(), second.get_parameter('bias').clone()))

    def _band(self, n_in: int) -> cuda_kernels.Band:
        """Return the band of the resize from `n_in` pixels; made in the warm-up, then captured."""
        if n_in not in self._bands:
            self._bands[n_in] = cuda_kernels.triangle_band(
                n_in, self.model.config.input_size_px, self._scale.device)
        return self._bands[n_in]

    def _autocast(self) -> torch.autocast:
        return torch.autocast('cuda', self.dtype, enabled=self.dtype != torch.float32,
                              cache_enabled=False)

    @staticmethod
    def _wrapped(function: Callable, compiled: bool, dynamic: bool | None) -> Callable:
        if not compiled:
            return function
        return torch.compile(function, dynamic=dynamic, options={
            'triton.cudagraphs': False, 'epilogue_fusion': True})
