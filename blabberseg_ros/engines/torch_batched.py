# SPDX-License-Identifier: Apache-2.0
"""Many frames at once on a CUDA device, for work offline: recorded flights, evaluation.

A robot asks for one frame at a time, which leaves most of a large GPU idle. Here a batch of frames
goes through the image tower in one piece, and its frames times all prompts through the decoder.
Frames, masks and probabilities stay on the device; one captured CUDA graph does everything.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blabberseg_ros.backends.feeds import device_search
from blabberseg_ros.backends.values import PromptCode
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines import cuda_kernels
from blabberseg_ros.engines.torch_capture import capture
from blabberseg_ros.engines.torch_stages import CudaStages
from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.resampling import blur_and_resize_matrices, triangle_matrices

_PATCH_VALUES = 3 * 16 ** 2


@dataclass(frozen=True)
class Job:
    """What is asked of every frame.

    Attributes:
        prompts: codes, in the order of `is_positive`.
        is_positive: for each prompt whether it stands for safe ground.
        fusion: blur, threshold and failure rules.
        size: (height, width) of the frames in pixels.
        batch: number of frames at once.
    """

    prompts: tuple[PromptCode, ...]
    is_positive: tuple[bool, ...]
    fusion: FusionOptions
    size: tuple[int, int]
    batch: int = 64


@dataclass(frozen=True)
class BatchAnswer:
    """Results on the device, overwritten by the next batch.

    Attributes:
        masks: uint8 [B, H, W], 255 where it is safe.
        probability: float32 [B, H, W].
        found: int32 [B, 2]: index of the threshold (100 if none), and how many pixels are not
            finite.
    """

    masks: Tensor
    probability: Tensor
    found: Tensor


class BatchedClipSeg:
    """CLIPSeg for batches of one size and one prompt set, captured as one CUDA graph."""

    def __init__(self, bundle: Bundle, job: Job, precision: str = 'fp16',
                 compiled: bool = True) -> None:
        """Load the network, compile and capture; this takes a while.

        Raises:
            BundleError: the weights do not fit the manifest.
            EngineError: the device cannot do it.
        """
        self.job = job
        self._stages = _BatchStages(bundle, precision, compiled, job)
        height, width = job.size
        self._frames = torch.zeros((job.batch, height, width, 3), dtype=torch.uint8,
                                   device='cuda')
        try:
            self._capture()
        except torch.cuda.OutOfMemoryError as error:
            raise EngineError(f'the GPU is out of memory with {job.batch} frames at once; use a '
                              'smaller batch') from error

    def segment(self, frames: Tensor) -> BatchAnswer:
        """Segment a batch.

        Args:
            frames: uint8 [B, H, W, 3], RGB, on the device.

        Returns:
            The answer; its tensors are overwritten by the next call.

        Raises:
            EngineError: the frames are not those of the job.
        """
        if frames.shape != self._frames.shape or frames.dtype != torch.uint8:
            raise EngineError(
                f'the batch is {frames.dtype} {list(frames.shape)}; it was made for uint8 '
                f'{list(self._frames.shape)}')
        self._frames.copy_(frames)
        self._graph.replay()
        return self._answer

    def _capture(self) -> None:
        self._graph, self._answer = capture(lambda: self._stages.answer_batch(self._frames))


class _BatchStages(CudaStages):
    """The stages for a batch; what differs from frame to frame is only the frame."""

    hidden_parts = 1  # a batch keeps the whole GPU busy as it is

    def __init__(self, bundle: Bundle, precision: str, compiled: bool, job: Job) -> None:
        super().__init__(bundle, precision, compiled)
        side = self.model.config.input_size_px
        self._mul, self._add = (_on_device(np.stack([code[name] for code in job.prompts]))
                                for name in ('mul', 'add'))
        self._positive = _on_device(np.array(job.is_positive, np.float32))
        self._rows_in, self._cols_in = map(_on_device, triangle_matrices(*job.size, side))
        self._rows_out, self._cols_out = map(
            _on_device, blur_and_resize_matrices(side, *job.size, job.fusion.blur_kernel_size))
        search = device_search(job.fusion, job.size[0] * job.size[1])
        self._thresholds, self._wanted = map(_on_device, (search.thresholds, search.wanted))
        self._encode_many = self._wrapped(self._encode_patches_many, compiled, dynamic=False)
        self._tokens_many = self._wrapped(self._decode_tokens_many, compiled, dynamic=False)

    def answer_batch(self, frames: Tensor) -> BatchAnswer:
        """Go from frames uint8 [B, H, W, 3] to masks and probabilities."""
        patches = self._patches_of(frames)
        with self._autocast():
            codes = self._encode_many(patches).float()
        probability = self._rows_out @ self._small_probability(codes) @ self._cols_out
        masks = torch.empty(probability.shape, dtype=torch.uint8, device=frames.device)
        found = torch.empty((len(frames), 2), dtype=torch.int32, device=frames.device)
        bins = cuda_kernels.empty_bins(frames.device)
        for index in range(len(frames)):
            cuda_kernels.threshold_mask(probability[index], self._thresholds, self._wanted, bins,
                                        masks[index], found[index])
        return BatchAnswer(masks, probability, found)

    def _patches_of(self, frames: Tensor) -> Tensor:
        """Resize and normalise every frame: [B, T - 1, 768], laid out as patches."""
        batch, height, width, _ = frames.shape
        config = self.model.config
        narrow = torch.empty((height, config.input_size_px, 3), device=frames.device)
        patches = torch.empty((batch, config.grid ** 2, _PATCH_VALUES), dtype=self.dtype,
                              device=frames.device)
        for index in range(batch):
            cuda_kernels.resize_and_normalise(
                frames[index], self._rows_in, self._cols_in, self._band(height),
                self._band(width), self._scale, self._offset, narrow, patches[index])
        return patches

    def _encode_patches_many(self, patches: Tensor) -> Tensor:
        """Embed the patches, run the tower and reduce: [B, T - 1, 768] to [B, L, T, r]."""
        embedded = functional.linear(patches, self.model.visual.conv1.weight.flatten(1))
        return self.model.code_of(
            self.model.activations_of_patches(embedded, self._position))

    def _small_probability(self, codes: Tensor) -> Tensor:
        """Decode and fuse: codes [B, L, T, r] to float32 [B, S, S]."""
        side = self.model.config.input_size_px
        if self._head is None:
            pair = (value.expand(len(codes), -1, -1) for value in (self._mul, self._add))
            with self._autocast():
                weight = self.model.decode_batch(codes, *pair).float().softmax(1)
            return (self._positive[:, None, None] * weight).sum(1)
        with self._autocast():
            tokens = self._tokens_many(codes, self._mul, self._add)
        small = torch.empty((len(codes), side, side), dtype=torch.float32, device=codes.device)
        for index in range(len(codes)):
            cuda_kernels.head_and_softmax(tokens[index], *self._head, self._positive,
                                          small[index])
        return small

    def _decode_tokens_many(self, codes: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Run the decoder as far as the head's first convolution: [B, P, grid², r]."""
        shape = (len(codes), *mul.shape)
        image = self.model.decode_features_batch(codes, mul.expand(shape), add.expand(shape))
        features = functional.relu(self._mixing(image))
        tokens = features.to(self.dtype).flatten(2).transpose(1, 2).contiguous()
        return tokens.unflatten(0, (-1, len(mul)))


def _on_device(array: np.ndarray) -> Tensor:
    return torch.tensor(array, device='cuda')
