# SPDX-License-Identifier: Apache-2.0
"""The stages of any family as functions on CUDA tensors, for capture as CUDA graphs.

A family's own stages (`models.FAMILY_stages`) run as they are, in half precision where its network
says so. A family whose frames have to be faster gets a module of its own, as CLIPSeg has in
`torch_stages`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines import cuda_kernels
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.errors import EngineError
from blabberseg_ros.models.families import load_network, stages_of
from blabberseg_ros.models.stages import Stage

DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16, 'fp32': torch.float32}
THRESHOLDS = TensorSpec('thresholds', 'float32', (101,))
WANTED = TensorSpec('wanted', 'int32', (2,))
ANSWER_OUTPUTS = [TensorSpec('probability', 'float32', ('height', 'width')),
                  TensorSpec('mask', 'uint8', ('height', 'width')),
                  TensorSpec('found', 'int32', (2,))]

CudaStage = tuple[Callable[..., dict[str, Tensor]], list[TensorSpec], list[TensorSpec]]


class CudaStages:
    """A bundle's network on the device, in one precision."""

    def __init__(self, bundle: Bundle, precision: str, compiled: bool) -> None:
        """Load the network.

        Args:
            bundle: the model, of any family.
            precision: of the methods that the network names in `half_methods`, by torch's
                autocast rules: matrix products in half precision, norms and softmax in fp32.
            compiled: run those methods through torch.compile.

        Raises:
            BundleError: the weights do not fit.
        """
        model: Any = load_network(bundle).cuda()
        for name in getattr(model, 'half_parts', ()):
            _convert_products(getattr(model, name), DTYPES[precision])
        for name in model.half_methods:
            setattr(model, name, _faster(getattr(model, name), DTYPES[precision], compiled))
        self._stages = dict(stages_of(model))
        for stage in self._stages.values():
            stage.module.cuda().eval()

    def stage(self, name: str) -> CudaStage:
        """Return a stage's function and what it takes and gives.

        Raises:
            EngineError: there is no such stage.
        """
        if name == 'answer':
            return self._answer()
        if name not in self._stages:
            raise EngineError(f'torch has no stage {name!r}; it has {", ".join(self._stages)}')
        stage = self._stages[name]

        def function(**feeds: Tensor) -> dict[str, Tensor]:
            return _run(stage, feeds)

        return function, list(stage.inputs), list(stage.outputs)

    def _answer(self) -> CudaStage:
        """Return decoder, fusion and threshold search as one stage."""
        decoder, fusion = self._stages['decoder'], self._stages['fusion']
        rest = [spec for spec in fusion.inputs if spec.name != 'logits']

        def function(**feeds: Tensor) -> dict[str, Tensor]:
            logits = without_padding(_run(decoder, feeds)['logits'], feeds['positive'])
            probability = _run(fusion, {**feeds, 'logits': logits})['probability']
            return cut_mask(probability, feeds['thresholds'], feeds['wanted'])

        return function, [*decoder.inputs, *rest, THRESHOLDS, WANTED], ANSWER_OUTPUTS


def without_padding(logits: Tensor, positive: Tensor) -> Tensor:
    """Return logits [P, S, S] whose padding has no share in a softmax over P.

    Args:
        logits: of prompts.
        positive: float32 [P] of a stage `answer`, negative where a row is padding.
    """
    return logits.masked_fill(positive[:, None, None] < 0, -torch.inf)


def cut_mask(probability: Tensor, thresholds: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the outputs of a stage `answer`: search the threshold and cut the mask.

    Args:
        probability: float32 [H, W] of safe ground.
        thresholds: float32 [101], see `backends.feeds.DeviceSearch`.
        wanted: int32 [2], likewise.
    """
    probability = probability.contiguous()
    mask = torch.empty(probability.shape, dtype=torch.uint8, device=probability.device)
    found = torch.empty(2, dtype=torch.int32, device=probability.device)
    cuda_kernels.threshold_mask(probability, thresholds, wanted,
                                cuda_kernels.empty_bins(probability.device), mask, found)
    return {'probability': probability, 'mask': mask, 'found': found}


def _run(stage: Stage, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = stage.module(*(feeds[spec.name] for spec in stage.inputs))
    outputs = outputs if isinstance(outputs, Sequence) else (outputs,)
    return {spec.name: output.to(getattr(torch, spec.dtype))
            for spec, output in zip(stage.outputs, outputs, strict=True)}


def _convert_products(part: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of products once; autocast would do it for every frame.

    Of LSeg's ViT-L/16 that is 1.2 GB to read and 0.6 GB to write a frame.
    """
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


def _faster(method: Callable, dtype: torch.dtype, compiled: bool) -> Callable:
    """Return a method in half precision and compiled."""
    if compiled:
        # Freezing folds the conversion of the weights, which would cost more than the products.
        method = torch.compile(method, options={'triton.cudagraphs': False, 'freezing': True})
    if dtype == torch.float32:
        return method
    return torch.autocast('cuda', dtype, cache_enabled=False)(method)
