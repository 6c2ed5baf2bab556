# SPDX-License-Identifier: Apache-2.0
"""Settings of the TensorRT plans of a bundle; `blabberseg build` makes them."""

from dataclasses import dataclass
from typing import Literal

from blabberseg_ros.fpseg_tools.settings import require


@dataclass(frozen=True)
class BuildSettings:
    """Which plans are built.

    Attributes:
        network: name or folder of a bundle.
        builder: `tensorrt`, or `tensorrt_rtx`, which needs no GPU and only proves that the graphs
            build.
        precision: for example `fp16` or `fp32`.
        n_classes: least, usual and largest number of classes in a call.
        image_sizes: `WIDTHxHEIGHT` of the camera's images.
        stages: to build; empty takes all.
        optimisation_level: 0 builds fastest, 5 searches longest.
    """

    network: str
    builder: Literal['tensorrt', 'tensorrt_rtx'] = 'tensorrt'
    precision: str = 'fp16'
    n_classes: tuple[int, int, int] = (1, 8, 33)
    image_sizes: tuple[str, ...] = ('2048x1024',)
    stages: tuple[str, ...] = ()
    optimisation_level: int = 3

    def __post_init__(self) -> None:
        """Refuse what no engine can be built for."""
        least, usual, largest = self.n_classes
        require(1 <= least <= usual <= largest,
                f'n_classes is {list(self.n_classes)}; it must rise from 1 or more')

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of `blabberseg build`."""
        return ['--bundle', self.network, '--builder', self.builder,
                '--precision', self.precision, '--prompts', *map(str, self.n_classes),
                *(['--image-sizes', *self.image_sizes] if self.image_sizes else []),
                *(item for stage in self.stages for item in ('--stage', stage)),
                '--optimisation-level', str(self.optimisation_level)]
