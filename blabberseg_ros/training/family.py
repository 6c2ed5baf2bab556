# SPDX-License-Identifier: Apache-2.0
"""The seam between training and a model family.

Worlds, crops, augmentation, schedule, optimiser, averaging, checkpoints, judging and the card are
the same for all. A family supplies the network, the loss of one update, a predictor to judge it
with, and what its bundle holds besides the network.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.families import network_config
from blabberseg_ros.training.card import write_card
from blabberseg_ros.training.config import FAMILIES, TrainConfig
from blabberseg_ros.training.evaluation import Predictor


class StepLosses(Protocol):
    """What an update minimises."""

    @property
    def total(self) -> Tensor:
        """Return the weighted sum, a scalar."""

    @property
    def line(self) -> str:
        """Return the parts as text; waits for the device."""


class Lesson(Protocol):
    """A network in training."""

    @property
    def helpers(self) -> nn.Module:
        """Return the layers that are trained along and dropped afterwards; may be empty."""

    def draw(self, rng: random.Random) -> Sequence[Tensor]:
        """Draw what the network is asked in an update.

        Returns:
            Tensors on the device, always of the same shapes.
        """

    def losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor,
               *asked: Tensor) -> StepLosses:
        """Run the network forward. What is run depends on the values of no tensor.

        Args:
            pixels: float32 [B, 3, S, S], normalised.
            labels: int64 [B, S, S], class ids.
            class_weights: float32 [C].
            asked: what `draw` gave.
        """


class Family(ABC):
    """What training has to know of a model family.

    Attributes:
        name: in configurations and manifests.
        teacher: CLIPSeg whose towers the network started with, if any.
    """

    name: ClassVar[str]
    teacher: ClipSeg | None = None

    def __init__(self, workspace: Path) -> None:
        """Remember an existing folder for temporary files."""
        self.workspace = workspace

    @staticmethod
    @abstractmethod
    def create(architecture: Any) -> nn.Module:
        """Return a network of this architecture, as checkpoints and bundles hold it."""

    @abstractmethod
    def fresh(self, config: TrainConfig, continued: bool) -> nn.Module:
        """Return a network to train, the same for the same seed.

        Args:
            config: of the run.
            continued: whether the weights of a network that was trained before will follow.
        """

    def finished(self, model: nn.Module) -> nn.Module:
        """Return a trained network as `create` makes it; a copy if anything is changed."""
        return model

    def adopt_tower(self, model: Any, teacher: ClipSeg, pixels: Tensor) -> None:
        """Give a network the image tower of a trained CLIPSeg; see `tower.py`.

        Raises:
            ParameterError: this family has no tower of that kind.
        """
        raise ParameterError(f"the image tower of {self.name} is not of CLIP's kind; "
                             '--tower-from is for segformer, for lseg with a vit and for fpseg '
                             'with a sam_vit')

    def tower_weights(self, model: Any) -> list[nn.Parameter]:
        """Return the weights that `adopt_tower` sets and that can be kept for a while."""
        return []

    @abstractmethod
    def lesson(self, model: Any, config: TrainConfig, device: torch.device) -> Lesson:
        """Prepare the training of a network that lies on `device`."""

    @abstractmethod
    def predictor(self, model: Any, device: torch.device) -> Predictor:
        """Return a finished network as something that can be judged."""

    @abstractmethod
    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card, half a sentence."""

    @property
    @abstractmethod
    def language(self) -> str:
        """Return for the card what can be asked for, a sentence or two."""

    @abstractmethod
    def vocabulary_files(self) -> dict[str, Any]:
        """Return what `export_bundle` needs to know of the family's prompts."""

    def export(self, model: nn.Module, config: TrainConfig, metrics: dict[str, Any] | None,
               folder: Path) -> None:
        """Write the demonstration bundle: 16-bit storage, what it knows of words, the card."""
        title = network_config(model).title
        export_bundle(
            model.cpu(), folder, name=bundle_name(self.name), storage='fp16',
            source=f'blabberseg train-demo, seed {config.seed}, {config.all_steps} updates; '
                   'trained on the procedural world of blabberseg_ros.sim alone',
            licence='Apache-2.0', **self.vocabulary_files(),
            card=write_card(bundle_name(self.name), title, self.architecture(config),
                            self.language, config, metrics))


def bundle_name(family: str) -> str:
    """Return the name of a family's demonstration bundle."""
    return f'{family}_demo'


def family_class(name: str) -> type[Family]:
    """Return a family by its name, importing what it needs; one of `config.FAMILIES`."""
    if name not in FAMILIES:
        raise ValueError(f'no family {name!r} among {FAMILIES}')
    return import_module(f'blabberseg_ros.training.family_{name}').FAMILY


def compiled(function: Any, device: torch.device) -> Any:
    """Compile a function for a GPU; shapes never change in training."""
    return torch.compile(function) if device.type == 'cuda' else function
