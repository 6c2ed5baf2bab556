# SPDX-License-Identifier: Apache-2.0
"""Linear read-outs that teach each tower directly; they are dropped after training.

The prompted losses teach the text tower through the image tower and the other way round, and
early on neither is of use to the other. With the read-outs each learns from the first update on.
"""

from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.clipseg_config import ClipSegConfig

# Labels are read off the centres of this many cells along a patch's side.
_CELLS = 4


class ReadOuts(nn.Module):
    """Classes from a prompt's conditional, and a coarse class map from an image code."""

    def __init__(self, config: ClipSegConfig, classes: int) -> None:
        """Create the two linear layers."""
        super().__init__()
        self._classes = classes
        self._cell_px = config.patch_size_px // _CELLS
        self.text = nn.Linear(config.embed_dim, classes)
        self.image = nn.Linear(
            len(config.extract) * config.reduce_dim, classes * _CELLS * _CELLS)

    def text_loss(self, conditional: Tensor, covers: Tensor, valid: Tensor) -> Tensor:
        """Return how badly prompts tell their classes; see `_text_loss`."""
        return _text_loss(self.text(conditional), covers, valid)

    def image_loss(self, codes: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
        """Return how badly codes [B, L, T, r] tell the labels, int64 [B, S, S]."""
        tokens = codes[:, :, 1:].permute(0, 2, 1, 3).flatten(2)
        grid = int(tokens.shape[1] ** 0.5)
        cells = self.image(tokens).float().unflatten(2, (self._classes, _CELLS, _CELLS))
        cells = cells.unflatten(1, (grid, grid))
        # [B, row, column, class, cell row, cell column] to [B, class, all rows, all columns].
        side = grid * _CELLS
        cells = cells.permute(0, 3, 1, 4, 2, 5).reshape(len(codes), self._classes, side, side)
        centre = self._cell_px // 2
        coarse = labels[:, centre::self._cell_px, centre::self._cell_px]
        return functional.cross_entropy(cells, coarse, class_weights)


class TextReadOut(nn.Module):
    """Classes from a prompt's embedding."""

    def __init__(self, embed_dim: int, classes: int) -> None:
        """Create the linear layer."""
        super().__init__()
        self.linear = nn.Linear(embed_dim, classes)

    def loss(self, embedding: Tensor, covers: Tensor, valid: Tensor) -> Tensor:
        """Return how badly prompts tell their classes; see `_text_loss`."""
        return _text_loss(self.linear(embedding), covers, valid)


class MapReadOut(nn.Module):
    """Classes from each cell of a feature map, or from each of several parts of a cell."""

    def __init__(self, channels: int, classes: int, parts: int = 1) -> None:
        """Create the linear layer.

        Args:
            channels: of the map.
            classes: number of classes.
            parts: along one side of a cell.
        """
        super().__init__()
        self._parts = parts
        self.linear = nn.Conv2d(channels, classes * parts ** 2, 1)

    def loss(self, codes: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
        """Return how badly cells [B, C, h, h] tell the labels at their centres, [B, S, S]."""
        found = functional.pixel_shuffle(self.linear(codes), self._parts)
        step = labels.shape[-1] // found.shape[-1]
        coarse = labels[:, step // 2::step, step // 2::step]
        return functional.cross_entropy(found.float(), coarse, class_weights)


def _text_loss(logits: Tensor, covers: Tensor, valid: Tensor) -> Tensor:
    """Compare logits [..., C] with the classes of prompts, bool [..., C]; padding is not valid."""
    each = functional.binary_cross_entropy_with_logits(logits, covers.float(), reduction='none')
    return (each.mean(-1) * valid).sum() / valid.sum()
