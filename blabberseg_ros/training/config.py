# SPDX-License-Identifier: Apache-2.0
"""Everything that decides what a training run gives, in one YAML file."""

from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from blabberseg_ros.errors import BundleError, ParameterError
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.training.labels import CLASS_NAMES

Section = TypeVar('Section')
# Families that read words, and those that know the classes of the world and no words.
OPEN_FAMILIES = ('clipseg', 'lseg')
CLOSED_FAMILIES = ('segformer', 'fpseg')
FAMILIES = ('clipseg', 'segformer', 'lseg', 'fpseg')
_ARCHITECTURES = {'clipseg': 'ClipSegConfig', 'segformer': 'SegformerConfig',
                  'lseg': 'LSegConfig', 'fpseg': 'FpSegConfig'}
# Families that know no words know the classes of the world.
_KNOWN: dict[str, dict[str, Any]] = {'segformer': {'labels': CLASS_NAMES},
                                     'fpseg': {'class_names': CLASS_NAMES}}


@dataclass(frozen=True)
class WorldsConfig:
    """How much world is generated.

    Attributes:
        train: number of training worlds.
        validation: number of worlds on which thresholds are chosen.
        test: number of worlds of each kind of test (known families, held-out families).
        views: camera views of each validation and test world.
        skip: training worlds to leave out at the front, so that a run which continues another
            sees new ones.
        size_m: side of a world.
        resolution_m: ground size of a world's pixel.
        first: worlds that are there before the first step.
        ramp_steps: updates after which all worlds are in use. Until then they draw from a
            growing number, which depends on nothing else, so that training need not wait for all
            worlds and still gives the same result each time.
    """

    train: int = 480
    validation: int = 10
    test: int = 10
    views: int = 8
    skip: int = 0
    size_m: float = 240.0
    resolution_m: float = 0.1
    first: int = 28
    ramp_steps: int = 2000


@dataclass(frozen=True)
class CropsConfig:
    """How training images are cut out of the worlds.

    Attributes:
        min_altitude_m: lowest camera; altitudes are drawn evenly on a logarithmic scale.
        max_altitude_m: highest camera.
        fov_deg: field of view of the camera.
        centred: share of crops that are centred near a pixel of a random class, so that small
            things are seen often enough.
        strength: of the photometric augmentation; 0 switches it off.
    """

    min_altitude_m: float = 6.0
    max_altitude_m: float = 130.0
    fov_deg: float = 73.0
    centred: float = 0.5
    strength: float = 1.0


@dataclass(frozen=True)
class OptimiserConfig:
    """Schedule and optimiser (AdamW, linear warm-up, cosine decay, averaged weights).

    Attributes:
        steps: number of updates; the schedule is laid out over them.
        batch_size: images an update.
        prompt_sets: prompt sets an update; the images share them out evenly.
        learning_rate: highest one.
        warmup_steps: updates until it is reached.
        weight_decay: on matrices, embeddings excepted.
        ema_decay: of the averaged weights, which are the ones that are kept.
        gradient_clip: largest norm of a gradient.
        frozen_steps: updates during which an image tower that was adopted from another network
            keeps its weights, while the fresh layers learn to read it.
    """

    steps: int = 4000
    batch_size: int = 64
    prompt_sets: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    gradient_clip: float = 1.0
    frozen_steps: int = 0


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses (see `losses.py`, `auxiliary.py`) and of the classes in them.

    Attributes:
        coverage: softmax over the prompts, against the prompts that stand for a pixel's class.
        polarity: summed probability of the positive prompts, against safe or unsafe.
        separate: one sigmoid a prompt, CLIPSeg's own loss.
        text: read-out of the classes from a prompt's conditional.
        image: read-out of a coarse class map from the image code.
        tower: distance of what an adopted image tower is given from what it was trained on
            (segformer).
        balance: exponent of a class's rarity in its weight; 0 weighs all pixels alike.
        polarity_balance: exponent of the class weights in the polarity loss; 0 weighs all pixels
            alike there.
        stride: the prompted losses look at every stride-th row and column. Neighbouring pixels
            tell almost the same, and their logits are most of the memory traffic of an update.
            Odd for clipseg, so that every place within a patch comes up.
    """

    coverage: float = 1.0
    polarity: float = 1.0
    separate: float = 0.3
    text: float = 0.5
    image: float = 1.0
    tower: float = 1.0
    balance: float = 0.5
    polarity_balance: float = 0.5
    stride: int = 3

    @property
    def compared(self) -> slice:
        """Return the rows, or columns, that the prompted losses look at."""
        return slice(self.stride // 2, None, self.stride)


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the same values give the same run.

    Attributes:
        family: of the network, one of `FAMILIES`.
        seed: of everything that is random.
        earlier_steps: updates of the runs that this one continues.
        tower: name of the CLIPSeg bundle whose towers the network started with; empty for none.
        model: sizes of the network, the family's own configuration.
    """

    family: str = 'clipseg'
    seed: int = 0
    earlier_steps: int = 0
    tower: str = ''
    worlds: WorldsConfig = field(default_factory=WorldsConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    model: Any = field(default_factory=ClipSegConfig)

    @property
    def all_steps(self) -> int:
        """Return the updates of this run and of those that it continues."""
        return self.earlier_steps + self.optimiser.steps

    @classmethod
    def from_yaml(cls, path: Path) -> 'TrainConfig':
        """Read a configuration; what the file leaves out keeps its default.

        Raises:
            ParameterError: the file cannot be read, or names something unknown.
        """
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ParameterError(
                f'the training configuration {path} cannot be read: {error}') from error
        return config_from_dict(content, str(path))


def worlds_needed(step: int, config: TrainConfig) -> int:
    """Return how many worlds an update draws from; it depends on the step alone."""
    worlds = config.worlds
    ramp = min(step / max(worlds.ramp_steps, 1), 1.0)
    return min(worlds.train, worlds.first + int(ramp * max(worlds.train - worlds.first, 0)))


def config_from_dict(content: Any, where: str) -> TrainConfig:
    """Read nested mappings, as YAML or JSON give them.

    Args:
        content: the mappings.
        where: what to call them in a message.

    Raises:
        ParameterError: something in them is unknown, of the wrong type, or does not fit the rest.
    """
    if not isinstance(content, dict):
        raise ParameterError(f'{where}: {content!r} is not understood; it takes sections')
    family = content.get('family', 'clipseg')
    if family not in FAMILIES:
        raise ParameterError(
            f'{where}: there is no family {family!r} to train; use one of {", ".join(FAMILIES)}')
    model = _architecture(family, content.get('model', {}), f'{where}, model')
    config = _section(TrainConfig, {**content, 'model': model}, where)
    _check(config, where)
    return config


def _check(config: TrainConfig, where: str) -> None:
    """Refuse values that do not fit each other."""
    batch_size, sets = config.optimiser.batch_size, config.optimiser.prompt_sets
    if config.family in OPEN_FAMILIES and (sets < 1 or batch_size % sets):
        raise ParameterError(f'{where}: batch_size {batch_size} must be a multiple of prompt_sets '
                             f'{sets}; the images share the sets out evenly')
    if config.family == 'clipseg' and config.loss.stride % 2 == 0:
        raise ParameterError(
            f'{where}: stride must be odd, not {config.loss.stride}. The side of a patch is even, '
            'and each place within it has weights of its own, some of which would learn nothing')


def _architecture(family: str, content: Any, where: str) -> Any:
    """Build a family's own configuration; what is left out keeps its default."""
    module = import_module(f'blabberseg_ros.models.{family}_config')
    kind = getattr(module, _ARCHITECTURES[family])
    try:
        defaults = kind(**_KNOWN.get(family, {})).to_dict()
        return kind.from_dict(_merged(defaults, content, where))
    except BundleError as error:
        raise ParameterError(f'{where}: {error}') from error


def _merged(defaults: dict[str, Any], content: Any, where: str) -> dict[str, Any]:
    """Return nested values with some of them replaced; one of another `kind` is taken whole."""
    if isinstance(content, dict) and content.get('kind', defaults.get('kind')) != defaults.get(
            'kind'):
        return content
    if not isinstance(content, dict) or not set(content) <= set(defaults):
        unknown = sorted(set(content) - set(defaults)) if isinstance(content, dict) else content
        raise ParameterError(
            f'{where}: {unknown} is not understood; this section takes {", ".join(defaults)}')
    return defaults | {
        name: (_merged(defaults[name], value, f'{where}, {name}')
               if isinstance(defaults[name], dict) else value)
        for name, value in content.items()}


def _section(kind: type[Section], content: Any, where: str) -> Section:
    """Build a dataclass from a mapping, section by section."""
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict) or not set(content) <= set(known):
        unknown = sorted(set(content) - set(known)) if isinstance(content, dict) else content
        raise ParameterError(
            f'{where}: {unknown} is not understood; this section takes {", ".join(known)}')
    values: dict[str, Any] = {}
    for name, value in content.items():
        factory: Any = known[name].default_factory
        if name != 'model' and isinstance(factory, type) and is_dataclass(factory):
            value = _section(factory, value, f'{where}, {name}')
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
