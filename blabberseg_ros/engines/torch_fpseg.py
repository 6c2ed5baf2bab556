# SPDX-License-Identifier: Apache-2.0
"""The stages of FPSeg as functions on CUDA tensors, for capture as CUDA graphs.

In half precision the whole of encoder and decoder is in that type, as TinyViT's unnormalised
residual stream already is under autocast, and the encoder's images have their channels side by
side: its 1 x 1 convolutions are then matrix products and its 3 x 3 ones read each pixel once.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines import cuda_kernels, fpseg_kernels, torch_family
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.layers import ChannelNorm, from_windows, to_windows
from blabberseg_ros.models.tiny_vit import ConvNorm, Merging, MobileBlock, TinyVit, TinyVitBlock

_COMPILE: dict[str, Any] = {'triton.cudagraphs': False, 'freezing': True}


class CudaStages(torch_family.CudaStages):
    """A bundle's network on the device, in one precision."""

    def __init__(self, bundle: Bundle, precision: str, compiled: bool) -> None:
        """Load the network; arguments as for every family.

        Raises:
            BundleError: the weights do not fit.
        """
        super().__init__(bundle, precision, compiled)
        self._dtype = torch_family.DTYPES[precision]
        model = cast(FpSeg, self._stages['decoder'].module.model)
        self._config = model.config
        encoder = model.image_encoder
        if precision != 'fp32' and isinstance(encoder, TinyVit) and self._config.fit == 'squash':
            self._prepare_encoder(encoder, compiled)
        if precision != 'fp32':
            self._prepare_decoder(model, compiled)

    def _prepare_encoder(self, plain: TinyVit, compiled: bool) -> None:
        """Replace the image encoder by the fast one."""
        std = torch.tensor(self._config.std, device='cuda')
        self._scale = 1.0 / (255.0 * std)
        self._offset = torch.tensor(self._config.mean, device='cuda') / std
        self._bands: dict[int, cuda_kernels.Band] = {}
        encoder = FastTinyVit(plain, self._dtype).eval().requires_grad_(False)
        self._encode: Any = torch.compile(encoder, options=_COMPILE) if compiled else encoder

    def _prepare_decoder(self, model: FpSeg, compiled: bool) -> None:
        """Replace autocast by the type itself."""
        decoder = HalfDecoder(model, self._dtype).eval().requires_grad_(False)
        self._decode: Any = torch.compile(decoder, options=_COMPILE) if compiled else decoder

    def stage(self, name: str) -> torch_family.CudaStage:
        """Return a stage's function and what it takes and gives.

        Raises:
            EngineError: there is no such stage.
        """
        function, inputs, outputs = super().stage(name)
        if name == 'image_encoder' and hasattr(self, '_encode'):
            return self._encode_image, inputs, outputs
        if name == 'decoder' and hasattr(self, '_decode'):
            return self._decode_classes, inputs, outputs
        if name == 'answer' and hasattr(self, '_decode'):
            return self._answer_fast, inputs, outputs
        return function, inputs, outputs

    def _encode_image(self, image: Tensor, rows: Tensor, cols: Tensor) -> dict[str, Tensor]:
        height, width, _ = image.shape
        side = self._config.input_size_px
        narrow = torch.empty((height, side, 3), device=image.device)
        pixels = torch.empty((side, side, 3), dtype=self._dtype, device=image.device)
        fpseg_kernels.resize_to_pixels(
            image, rows, cols, self._band(height), self._band(width), self._scale, self._offset,
            narrow, pixels)
        return {'code': self._encode(pixels).float().permute(2, 0, 1)}

    def _decode_classes(self, code: Tensor, tokens: Tensor, dense: Tensor,
                        bias: Tensor) -> dict[str, Tensor]:
        return {'logits': self._decode(code, tokens, dense, bias).float()}

    def _answer_fast(self, **feeds: Tensor) -> dict[str, Tensor]:
        logits = self._decode_classes(
            *(feeds[name] for name in ('code', 'tokens', 'dense', 'bias')))['logits']
        logits = torch_family.without_padding(logits, feeds['positive'])
        fusion = self._stages['fusion'].module
        probability = fusion(logits, feeds['positive'], feeds['rows'], feeds['cols'])
        return torch_family.cut_mask(probability, feeds['thresholds'], feeds['wanted'])

    def _band(self, n_in: int) -> cuda_kernels.Band:
        """Return the band of the resize from `n_in` pixels; made in the warm-up, then captured."""
        if n_in not in self._bands:
            self._bands[n_in] = cuda_kernels.triangle_band(
                n_in, self._config.input_size_px, self._scale.device)
        return self._bands[n_in]


class HalfDecoder(nn.Module):
    """The decoder with its weights, its tokens and its image in half precision."""

    position: Tensor

    def __init__(self, model: FpSeg, dtype: torch.dtype) -> None:
        """Copy the decoder's weights; the position code is computed in fp32 once."""
        super().__init__()
        self.decoder = copy.deepcopy(model.mask_decoder).to(dtype)
        self.dtype = dtype
        with torch.no_grad():
            position = model.prompt_encoder.position(model.config.grid)
        self.register_buffer('position', position.to(dtype))

    def forward(self, code: Tensor, tokens: Tensor, dense: Tensor, bias: Tensor) -> Tensor:
        """Decode one image for n classes; see `models.fpseg_stages.Decoder`."""
        image = code.to(self.dtype).flatten(1).T[None]
        return self.decoder(image, self.position, tokens.to(self.dtype), dense.to(self.dtype),
                            bias.to(self.dtype))


_Neck = tuple[nn.Conv2d, ChannelNorm, nn.Conv2d, ChannelNorm]


class FastTinyVit(nn.Module):
    """TinyViT on one image with its channels side by side: [S, S, 3] to [S/16, S/16, C]."""

    def __init__(self, encoder: TinyVit, dtype: torch.dtype) -> None:
        """Copy the weights of an encoder whose batch norms are folded."""
        super().__init__()
        encoder = copy.deepcopy(encoder).to(dtype)
        self.patches = encoder.patch_embed['seq'].to(memory_format=torch.channels_last)
        self.parts = nn.Sequential(*(
            _Block(part) if isinstance(part, TinyVitBlock) else _Mobile(part)
            for part in encoder.modules()
            if isinstance(part, TinyVitBlock | MobileBlock | Merging)))
        self.neck = encoder.neck.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels."""
        x = self.patches(pixels.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        first, norm, second, last = cast(_Neck, tuple(self.neck))
        x = norm.of_tokens(functional.linear(self.parts(x), first.weight.flatten(1)))
        x = second(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        return last.of_tokens(x)


class _Depthwise(nn.Module):
    """A 3 x 3 convolution by channel on [H, W, C]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ConvNorm, activate: bool) -> None:
        super().__init__()
        self.register_buffer('weight', layer.c.weight.detach().flatten(1).T.contiguous())
        self.register_buffer('bias', _bias(layer).detach().float())
        self.stride = layer.c.stride[0]
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        return fpseg_kernels.depthwise(x.contiguous(), self.weight, self.bias, self.stride,
                                       self.activate)


class _Mobile(nn.Module):
    """A `MobileBlock` or a `Merging` on [H, W, C]."""

    def __init__(self, block: MobileBlock | Merging) -> None:
        super().__init__()
        self.first, self.last = _linear(block.conv1), _linear(block.conv3)
        self.middle = _Depthwise(block.conv2, activate=True)
        self.residual = isinstance(block, MobileBlock)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.middle(functional.gelu(self.first(x))))
        return functional.gelu(x + y) if self.residual else y


class _Block(nn.Module):
    """A `TinyVitBlock` on [H, W, C]."""

    def __init__(self, block: TinyVitBlock) -> None:
        super().__init__()
        self.block = block
        self.local = _Depthwise(block.local_conv, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width, _ = x.shape
        windows = self.block.attn(to_windows(x[None], self.block.window))
        x = x + from_windows(windows, self.block.window, 1, height, width)[0]
        x = self.local(x)
        return x + self.block.mlp(x)


def _linear(layer: ConvNorm) -> nn.Linear:
    """Return a 1 x 1 convolution as a linear layer."""
    out, channels = layer.c.weight.shape[:2]
    linear = nn.Linear(channels, out, device='meta')
    linear.weight = nn.Parameter(layer.c.weight.detach().flatten(1))
    linear.bias = nn.Parameter(_bias(layer).detach())
    return linear


def _bias(layer: ConvNorm) -> Tensor:
    if layer.c.bias is None:
        raise ValueError('the batch norms are not folded')
    return layer.c.bias
