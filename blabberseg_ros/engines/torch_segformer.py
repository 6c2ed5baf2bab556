# SPDX-License-Identifier: Apache-2.0
"""The stages of Segformer as functions on CUDA tensors, for capture as CUDA graphs.

The network is that of `models.segformer`, compiled. What it gains here: depthwise convolutions as
nine shifted products, which the compiler puts into one kernel with the activation behind them;
resizing and normalising in two kernels; upsampling, softmax and the sum over the safe labels in
kernels that never write the logits at the input's size, 37 MB of them in B4.
"""

from typing import Any, cast

import torch
from torch import Tensor

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines import cuda_kernels, fpseg_kernels, torch_family
from blabberseg_ros.engines.shifted_depthwise import ShiftedDepthwise
from blabberseg_ros.models.segformer import MixMlp, Segformer

_COMPILE: dict[str, Any] = {'triton.cudagraphs': False}


class CudaStages(torch_family.CudaStages):
    """A bundle's network on the device, in one precision."""

    def __init__(self, bundle: Bundle, precision: str, compiled: bool) -> None:
        """Load the network; arguments as for every family.

        Raises:
            BundleError: the weights do not fit.
        """
        super().__init__(bundle, precision, compiled)
        self._dtype = torch_family.DTYPES[precision]
        self._model = cast(Segformer, self._stages['decoder'].module.model)
        self._config = self._model.config
        std = torch.tensor(self._config.std, device='cuda')
        self._scale = 1.0 / (255.0 * std)
        self._offset = torch.tensor(self._config.mean, device='cuda') / std
        self._bands: dict[int, cuda_kernels.Band] = {}
        self._share: Any = self._safe_share
        if compiled:
            for module in list(self._model.modules()):
                if isinstance(module, MixMlp):
                    module.conv = ShiftedDepthwise(module.conv)  # type: ignore[assignment]
            self._share = torch.compile(self._safe_share, options=_COMPILE)

    def stage(self, name: str) -> torch_family.CudaStage:
        """Return a stage's function and what it takes and gives.

        Raises:
            EngineError: there is no such stage.
        """
        function, inputs, outputs = super().stage(name)
        if name == 'image_encoder':
            return self._encode_image, inputs, outputs
        if name == 'answer':
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
        code = self._model.encode_image(pixels.permute(2, 0, 1)[None])
        return {'code': code[0].float().contiguous()}

    def _answer_fast(self, **feeds: Tensor) -> dict[str, Tensor]:
        small = self._share(feeds['code'], feeds['positive'])
        probability = feeds['rows'] @ small @ feeds['cols']
        return torch_family.cut_mask(probability, feeds['thresholds'], feeds['wanted'])

    def _safe_share(self, code: Tensor, positive: Tensor) -> Tensor:
        """Return the share of the safe labels in the softmax, float32 [S, S]."""
        logits = self._model.upsample(code)
        weight = torch.exp(logits - logits.amax(0, keepdim=True))
        return (positive[:, None, None] * weight).sum(0) / weight.sum(0)

    def _band(self, n_in: int) -> cuda_kernels.Band:
        """Return the band of the resize from `n_in` pixels; made in the warm-up, then captured."""
        if n_in not in self._bands:
            self._bands[n_in] = cuda_kernels.triangle_band(
                n_in, self._config.input_size_px, self._scale.device)
        return self._bands[n_in]
