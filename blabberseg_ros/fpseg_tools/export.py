# SPDX-License-Identifier: Apache-2.0
"""A tuned network or a published checkpoint as a bundle with ONNX graphs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blabberseg_ros.bundle import Manifest
from blabberseg_ros.fpseg_tools.networks import check_source, open_network
from blabberseg_ros.fpseg_tools.progress import counter
from blabberseg_ros.fpseg_tools.settings import require, require_writable
from blabberseg_ros.models.export import export_bundle


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, and whereto.

    The encoder and the decoder are graphs of their own, and the classes are inputs of the latter.

    Attributes:
        network: result of tuning, checkpoint (SAM, MobileSAM, FPSeg) or bundle.
        out: folder of the new bundle; its name is that of the folder.
        storage: `fp32`, or `fp16` to halve the file.
        attention_bias: `live` or `zero`, for .pt and .pth checkpoints.
        fit: `squash` or `letterbox`, for such checkpoints.
        input_size_px: for such checkpoints.
        source: of the weights, for the card; null names the file.
        licence: of the weights.
    """

    network: str
    out: Path
    storage: Literal['fp32', 'fp16'] = 'fp32'
    attention_bias: Literal['live', 'zero'] | None = None
    fit: Literal['squash', 'letterbox'] | None = None
    input_size_px: int | None = None
    source: str | None = None
    licence: str = 'that of the weights which the training started from, and of its data'

    def __post_init__(self) -> None:
        """Refuse to overwrite what is read."""
        require(Path(self.network).expanduser().resolve() != self.out.resolve(),
                f'{self.out} is the network itself; give another folder')


def export(settings: ExportSettings) -> Manifest:
    """Write the bundle.

    Raises:
        ParameterError: nothing can be written there, or an option contradicts the network.
        BundleError: the network cannot be read.
    """
    check_source(settings.network)
    require_writable(settings.out)
    with counter('exporting', 2) as progress:
        model = open_network(settings.network, attention_bias=settings.attention_bias,
                             fit=settings.fit, input_size_px=settings.input_size_px)
        progress.update()
        manifest = export_bundle(
            model, settings.out, name=settings.out.resolve().name, storage=settings.storage,
            source=settings.source or Path(settings.network).name, licence=settings.licence)
        progress.update()
    return manifest
