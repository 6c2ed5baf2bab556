# SPDX-License-Identifier: Apache-2.0
"""LSeg in torch: a vector for every pixel, in the space of CLIP's texts.

Li et al., "Language-driven Semantic Segmentation", ICLR 2022; the image path is DPT (Ranftl et
al., ICCV 2021). Letters in shapes: B images, P prompts, H and W sides of the input (multiples of
32), C width of the fusion, D length of the shared vectors.

What the network computes is kept apart from how it can be had cheaper. `features` and
`decode_batch` are the plain network. `models.lseg_stages` answers the same without a map of D
channels:

- The last 1x1 convolution runs before the doubling: a bilinear doubling is an average, and a
  linear layer commutes with averages.
- So does the head W f + b, and with it the product with a text t: (t W) f + t b.
- Lengths do not commute, but need no D channels: |W f + b| = |R f + r|, with R and r from the QR
  factors of (W | b); R'R is the Gram matrix of the head.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.folding import NormedConv2d
from blabberseg_ros.models.lseg_config import LSegConfig, check_input_size
from blabberseg_ros.models.lseg_towers import ResNetTower, VitTower
from blabberseg_ros.models.text_tower import TextTower


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with a ReLU before each, added to their input."""

    def __init__(self, width: int, norms: bool) -> None:
        """Create the convolutions."""
        super().__init__()
        self.conv1 = NormedConv2d(width, width, 3, padding=1, norm=norms)
        self.conv2 = NormedConv2d(width, width, 3, padding=1, norm=norms)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to the same shape."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class FusionStep(nn.Module):
    """One level joined to what the deeper ones gave."""

    def __init__(self, channels: int, width: int, deepest: bool, norms: bool) -> None:
        """Create the layers; the deepest level has nothing to be joined to."""
        super().__init__()
        self.adapt = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.join = None if deepest else ResidualUnit(width, norms)
        self.refine = ResidualUnit(width, norms)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, level: Tensor, deeper: Tensor | None = None) -> Tensor:
        """Return [B, C, h, w] from a level [B, channels, h, w] and what lies below it.

        Args:
            level: of the image tower.
            deeper: of the step before, [B, C, h/2, w/2]; None for the deepest level.
        """
        x = self.adapt(level)
        if deeper is not None and self.join is not None:
            x = upsampled(deeper, *x.shape[-2:]) + self.join(x)
        return self.project(self.refine(x))


class LSeg(nn.Module):
    """LSeg: text-prompted segmentation by the cosine between pixels and texts."""

    # Those that may run in half precision; the resize and the text tower may not.
    half_methods: ClassVar[tuple[str, ...]] = ('encode_checked',)
    # Parts that nothing but these methods runs, so that their weights can be converted once.
    half_parts: ClassVar[tuple[str, ...]] = ('vision', 'fusion')

    def __init__(self, config: LSegConfig, norms: bool = False) -> None:
        """Create the network with torch's and open_clip's initial weights.

        Args:
            config: sizes.
            norms: with batch norms behind the convolutions, as in training and in published
                checkpoints; `folding.fold_batch_norms` removes them.
        """
        super().__init__()
        self.config = config
        self.text = TextTower(config)
        self.vision: nn.Module = (
            VitTower(config) if config.backbone == 'vit' else ResNetTower(config, norms))
        deepest = len(config.level_channels) - 1
        self.fusion = nn.ModuleList(
            FusionStep(channels, config.features, index == deepest, norms)
            for index, channels in enumerate(config.level_channels))
        self.head = nn.Conv2d(config.features, config.embed_dim, 1)

    @property
    def steps(self) -> list[FusionStep]:
        """Return the steps of the fusion, the finest level's first."""
        return [step for step in self.fusion if isinstance(step, FusionStep)]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode prompts, int [P, 77], as vectors, float [P, D], not normalised."""
        return self.text(tokens)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: float [B, 3, H, W], normalised with the configuration's mean and std.

        Returns:
            Codes, float [B, C, H/4, W/4]: what every prompt asks, before the last doubling.

        Raises:
            BundleError: a side is no multiple of 32.
        """
        check_input_size(*pixels.shape[-2:])
        return self.encode_checked(pixels)

    def encode_checked(self, pixels: Tensor) -> Tensor:
        """Encode images whose sides are known to be multiples of 32; see `encode_images`."""
        x: Tensor | None = None
        levels = self.vision(pixels)
        for step, level in zip(reversed(self.steps), reversed(levels), strict=True):
            x = step(level, x)
        if x is None:
            raise ValueError('the image tower gave no level')
        return x

    def features(self, codes: Tensor) -> Tensor:
        """Return the vectors of the pixels of codes [B, C, H/4, W/4]: float [B, D, H/2, W/2]."""
        height, width = codes.shape[-2:]
        return functional.normalize(self.head(upsampled(codes, 2 * height, 2 * width)), dim=1)

    def decode_batch(self, codes: Tensor, embedding: Tensor) -> Tensor:
        """Segment a batch of images, each for prompts of its own, by the plain network.

        Args:
            codes: float [B, C, H/4, W/4] from `encode_images`.
            embedding: float [B, P, D] from `encode_text`.

        Returns:
            Logits, float [B, P, H, W]: cosines times the logit scale.
        """
        texts = functional.normalize(embedding, dim=-1)
        logits = self.config.logit_scale * torch.einsum(
            'bpd,bdhw->bphw', texts, self.features(codes))
        height, width = codes.shape[-2:]
        return upsampled(logits, 4 * height, 4 * width)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Segment images [B, 3, H, W] for prompts [P, 77], the same for all: [B, P, H, W]."""
        embedding = self.encode_text(tokens)
        return self.decode_batch(
            self.encode_images(pixels), embedding.expand(len(pixels), *embedding.shape))


def upsampled(x: Tensor, height: int, width: int) -> Tensor:
    """Resize maps bilinearly; the centres of the corner pixels stay where they are."""
    return functional.interpolate(x, (height, width), mode='bilinear', align_corners=True)


@torch.no_grad()
def length_factor(head: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return R [K, C] and r [K] with |R f + r| = |W f + b| for every f, K = min(D, C + 1)."""
    both = torch.cat((head.weight.flatten(1), head.get_parameter('bias')[:, None]), dim=1).double()
    factor = torch.linalg.qr(both, mode='r').R.float()
    return factor[:, :-1].contiguous(), factor[:, -1].contiguous()
