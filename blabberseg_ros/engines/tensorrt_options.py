# SPDX-License-Identifier: Apache-2.0
"""What a TensorRT plan shall be built for: options and shape profiles, without TensorRT."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.errors import EngineError, ParameterError

# tf32 is the fp32 graph with matrix products in TensorFloat-32 (10 bits of mantissa); auto is fp16
# for each stage that has a graph of it, and fp32 for the others.
AUTO_PRECISION = 'auto'
PRECISIONS = (AUTO_PRECISION, 'fp32', 'tf32', 'fp16', 'bf16')
# NVIDIA's names: none, any GPU from Ampere on, any GPU of the same compute capability.
HARDWARE_COMPATIBILITY = ('none', 'ampere_plus', 'same_compute_capability')
MAX_OPTIMISATION_LEVEL = 5
# Names that our exports give to the dynamic axes.
PROMPTS, HEIGHT, WIDTH = 'prompts', 'height', 'width'
# None of these changes the plan's answers or where it runs.
_NOT_DECIDING = ('precision', 'prompts', 'image_sizes', 'input_sizes', 'timing_cache')
# Axes of networks that take any size: sides of their input, and of maps at a half and a quarter.
_INPUT_SHARES = {'input': 1, 'half': 2, 'quarter': 4}


@dataclass(frozen=True)
class Range:
    """Lengths that an axis may have, and the one to be fastest at."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        """Refuse an empty or unordered range."""
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ParameterError(
                f'the range {self.minimum} {self.optimum} {self.maximum} is not 1 <= minimum <= '
                'optimum <= maximum')

    def nearest(self, length: int) -> int:
        """Return the length of the range that is nearest to one."""
        return min(max(length, self.minimum), self.maximum)


@dataclass(frozen=True)
class ImageRange:
    """Sizes that an image may have, in pixels; each range is one optimisation profile."""

    heights: Range
    widths: Range

    @classmethod
    def fixed(cls, width: int, height: int) -> 'ImageRange':
        """Return the range that holds one size only."""
        return cls(Range(height, height, height), Range(width, width, width))


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built.

    Attributes:
        precision: one of PRECISIONS. From TensorRT 11 on it is that of the exported graph; stages
            without a graph of that precision are fp32.
        prompts: numbers of prompts.
        image_sizes: sizes of camera images: one range, or several fixed sizes, which run faster.
        input_sizes: sides of what images are stretched to, of networks that take any size (LSeg).
        workspace_mib: limit of the builder's scratch memory; None leaves it to TensorRT.
        optimisation_level: 0 builds fastest, 5 searches longest.
        timing_cache: file that keeps the builder's measurements for the next build.
        sparse: use 2:4 sparse weights where a layer has them; ours have none.
        version_compatible: the plan also runs on later versions, slower.
        hardware_compatibility: one of HARDWARE_COMPATIBILITY.
        dla_core: deep-learning accelerator of a Jetson to use; what it cannot run runs on the GPU.
    """

    precision: str = AUTO_PRECISION
    prompts: Range = Range(1, 13, 64)
    image_sizes: tuple[ImageRange, ...] = (
        ImageRange(heights=Range(16, 480, 1920), widths=Range(16, 640, 1920)),)
    input_sizes: Range = Range(256, 480, 1024)
    workspace_mib: int | None = None
    optimisation_level: int = 3
    timing_cache: Path | None = None
    sparse: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = 'none'
    dla_core: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.precision == 'int8':
            raise ParameterError(
                "int8 is not built: in BlabberSeg's own notes its masks are wrong and the encoder "
                'is 12 times slower than in fp16 (45.4 ms, 3.93 ms). Use fp16')
        if self.precision not in PRECISIONS:
            raise ParameterError(f'the precision {self.precision!r} is unknown; use one of '
                                 f'{", ".join(PRECISIONS)}')
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise ParameterError(
                f'the hardware compatibility {self.hardware_compatibility!r} is unknown; use one '
                f'of {", ".join(HARDWARE_COMPATIBILITY)}')
        if not 0 <= self.optimisation_level <= MAX_OPTIMISATION_LEVEL:
            raise ParameterError(f'the optimisation level {self.optimisation_level} is not in '
                                 f'0..{MAX_OPTIMISATION_LEVEL}')
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ParameterError(f'a workspace of {self.workspace_mib} MiB is too small')
        if not self.image_sizes:
            raise ParameterError('no image size is given')
        if self.dla_core is not None and self.precision not in (AUTO_PRECISION, 'fp16'):
            raise ParameterError(
                f'a DLA computes in fp16 only and {self.precision} was asked for; use --precision '
                'fp16, or leave the DLA out')

    def settings(self) -> dict[str, Any]:
        """Return the options that decide what the plan is, besides precision and shapes."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name not in _NOT_DECIDING}

    def of_stage(self, precision: str) -> 'BuildOptions':
        """Return the options for a stage of a precision of its own; a DLA runs fp16 alone."""
        return replace(self, precision=precision,
                       dla_core=self.dla_core if precision == 'fp16' else None)

    def nearest(self, width_px: int, height_px: int, prompts: int) -> tuple[int, int, int]:
        """Return the width, height and number of prompts nearest to these that a plan takes."""
        def clamped(sizes: ImageRange) -> tuple[int, int]:
            return sizes.widths.nearest(width_px), sizes.heights.nearest(height_px)

        width, height = min(map(clamped, self.image_sizes), key=lambda size: (
            abs(size[0] - width_px) + abs(size[1] - height_px)))
        return width, height, self.prompts.nearest(prompts)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        path = self.timing_cache
        return json.dumps({**asdict(self), 'timing_cache': path and str(path.absolute())},
                          indent=2) + '\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> 'BuildOptions':
        """Return what `to_json` wrote.

        Raises:
            EngineError: it is damaged, or of another version.
        """
        try:
            content = json.loads(text)
            for name in ('prompts', 'input_sizes'):
                content[name] = Range(**content[name])
            content['image_sizes'] = tuple(
                ImageRange(**{axis: Range(**lengths) for axis, lengths in sizes.items()})
                for sizes in content['image_sizes'])
            if content['timing_cache'] is not None:
                content['timing_cache'] = Path(content['timing_cache'])
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError, ParameterError) as error:
            raise EngineError(f'the build options cannot be read ({error})') from error


@dataclass(frozen=True)
class InputRange:
    """Smallest, best and largest shape of one input in one optimisation profile."""

    name: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor of this shape can be fed."""
        return len(shape) == len(self.minimum) and all(
            low <= length <= high
            for low, length, high in zip(self.minimum, shape, self.maximum, strict=True))


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: a range for each input."""

    inputs: tuple[InputRange, ...]

    def to_dict(self) -> dict[str, list[list[int]]]:
        """Return input name to its three shapes, as plain lists."""
        return {entry.name: [list(entry.minimum), list(entry.optimum), list(entry.maximum)]
                for entry in self.inputs}


def profiles_for(inputs: Sequence[TensorSpec], options: BuildOptions) -> tuple[Profile, ...]:
    """Return the optimisation profiles of a graph.

    Args:
        inputs: of the graph, with the names of their dynamic axes.
        options: ranges of these axes.

    Returns:
        One profile for each range of image sizes; a single one if no input has an image's axes.

    Raises:
        EngineError: an axis is none that we know.
    """
    axes = {length for spec in inputs for length in spec.shape if isinstance(length, str)}
    sides = _input_ranges(options.input_sizes)
    if unknown := sorted(axes - {PROMPTS, HEIGHT, WIDTH, *sides}):
        raise EngineError(f'the graph has dynamic axes without a known range: '
                          f'{", ".join(unknown)}; export it with fixed ones')
    images = options.image_sizes if axes & {HEIGHT, WIDTH} else options.image_sizes[:1]
    profiles = []
    for image in images:
        ranges = {PROMPTS: options.prompts, HEIGHT: image.heights, WIDTH: image.widths, **sides}
        profiles.append(Profile(tuple(_input_range(spec, ranges) for spec in inputs)))
    return tuple(profiles)


def _input_ranges(sizes: Range) -> dict[str, Range]:
    """Return the ranges of the axes that follow from the sides of a network's input."""
    return {f'{name}_{side}': Range(sizes.minimum // share, sizes.optimum // share,
                                    sizes.maximum // share)
            for name, share in _INPUT_SHARES.items() for side in (HEIGHT, WIDTH)}


def _input_range(spec: TensorSpec, ranges: dict[str, Range]) -> InputRange:
    axes = [ranges[length] if isinstance(length, str) else Range(length, length, length)
            for length in spec.shape]
    return InputRange(spec.name, tuple(axis.minimum for axis in axes),
                      tuple(axis.optimum for axis in axes), tuple(axis.maximum for axis in axes))
