# SPDX-License-Identifier: Apache-2.0
"""The network itself in torch on the CPU, as an engine: what every other engine must equal."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Availability, Engine, EngineKind, TensorSpec, Value
from blabberseg_ros.errors import EngineError

if TYPE_CHECKING:
    from blabberseg_ros.models.clipseg import ClipSeg
    from blabberseg_ros.models.clipseg_config import ClipSegConfig

NAME = 'torch-cpu'
Modify = Callable[['ClipSeg'], None]


class TorchCpu(EngineKind):
    """Torch on the CPU, one operator after the other. Exact, and not meant to be fast."""

    name = NAME
    device = 'cpu'

    def __init__(self, precision: str = 'fp32', modify: Modify | None = None) -> None:
        """Choose the precision.

        Args:
            precision: of image tower and decoder: `fp32`, or `fp16` and `bf16` by torch's autocast
                rules.
            modify: changes the network after it is loaded, to test what notices.
        """
        self.precision = precision
        self.modify = modify
        self._networks: dict[str, Any] = {}

    def probe(self) -> Availability:
        """Return whether torch and open_clip are installed."""
        for module in ('torch', 'open_clip'):
            if importlib.util.find_spec(module) is None:
                return Availability(False, f'{module} is not installed; '
                                           'pip install "blabberseg_ros[torch]"')
        import torch

        return Availability(True, f'torch {torch.__version__}, {self.precision}, on the CPU')

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""
        return TorchCpuEngine(bundle, stage, self)

    def network(self, bundle: Bundle) -> 'ClipSeg':
        """Return the network of a bundle; all stages share it."""
        from blabberseg_ros.models.load_clipseg import load_clipseg

        if bundle.fingerprint not in self._networks:
            model = load_clipseg(bundle)
            if self.modify is not None:
                self.modify(model)
            if self.precision != 'fp32':
                # The networks alone: no engine resizes images in half precision.
                half = _autocast(self.precision)
                model.encode_image = half(model.encode_image)  # type: ignore[method-assign]
                model.decode = half(model.decode)  # type: ignore[method-assign]
            self._networks[bundle.fingerprint] = model
        return self._networks[bundle.fingerprint]

    def release(self, bundle: Bundle) -> None:
        """Forget the network of a bundle."""
        self._networks.pop(bundle.fingerprint, None)


class TorchCpuEngine(Engine):
    """One stage of the network.

    Attributes:
        module: of the stage; None while inactive.
    """

    def __init__(self, bundle: Bundle, stage: str, kind: TorchCpu) -> None:
        """Remember the stage."""
        super().__init__(bundle, stage)
        self.precision = kind.precision
        self._kind = kind
        self.module: Any = None

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        from blabberseg_ros.models import stages

        model = self._kind.network(self.bundle)
        makers: dict[str, Callable] = {
            'image_encoder': stages.ImageEncoder, 'text_encoder': stages.TextEncoder,
            'film': stages.Film, 'decoder': stages.Decoder, 'fusion': lambda _: stages.Fusion()}
        if self.stage not in makers:
            raise EngineError(f'torch has no stage {self.stage!r}; it has {", ".join(makers)}')
        self.module = makers[self.stage](model).eval()
        return ports(model.config)[self.stage]

    def _unload(self) -> None:
        self.module = None
        self._kind.release(self.bundle)

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        import torch

        tensors = [torch.from_numpy(np.array(feeds[spec.name])) for spec in self.inputs]
        with torch.inference_mode():
            outputs = self.module(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {spec.name: output.float().numpy()
                for spec, output in zip(self.outputs, outputs, strict=True)}


def _autocast(precision: str) -> Any:
    import torch

    return torch.autocast('cpu', {'fp16': torch.float16, 'bf16': torch.bfloat16}[precision])


def ports(config: 'ClipSegConfig') -> dict[str, tuple[list[TensorSpec], list[TensorSpec]]]:
    """Return the inputs, in the order of the module's arguments, and outputs of each stage."""
    side, width = config.input_size_px, config.reduce_dim
    code = TensorSpec('code', 'float32', (len(config.extract), config.tokens, width))
    pair = [TensorSpec(name, 'float32', ('prompts', width)) for name in ('mul', 'add')]
    conditional = TensorSpec('conditional', 'float32', ('prompts', config.embed_dim))
    logits = TensorSpec('logits', 'float32', ('prompts', side, side))
    return {
        'image_encoder': ([TensorSpec('image', 'uint8', ('height', 'width', 3)),
                           TensorSpec('rows', 'float32', (side, 'height')),
                           TensorSpec('cols', 'float32', ('width', side))], [code]),
        'text_encoder': ([TensorSpec('tokens', 'int32', ('prompts', config.context_length))],
                         [conditional]),
        'film': ([conditional], pair),
        'decoder': ([code, *pair], [logits]),
        'fusion': ([logits, TensorSpec('positive', 'float32', ('prompts',)),
                    TensorSpec('rows', 'float32', ('height', side)),
                    TensorSpec('cols', 'float32', (side, 'width'))],
                   [TensorSpec('probability', 'float32', ('height', 'width'))]),
    }
