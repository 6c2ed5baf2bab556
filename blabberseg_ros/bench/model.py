# SPDX-License-Identifier: Apache-2.0
"""The model for speed: a published network in full size, with random weights.

What a network computes decides its answers, not its speed, so nothing has to be downloaded.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from blabberseg_ros.bundle import TOKENIZER, WEIGHTS, Manifest, write_manifest
from blabberseg_ros.errors import EngineError

if TYPE_CHECKING:
    from torch import nn

_SOURCE, _LICENCE = 'random weights', 'none needed'


def make_model(folder: Path, *, graphs: bool, family: str = 'clipseg') -> bool:
    """Write the model as a bundle.

    Args:
        folder: of the bundle; made if absent.
        graphs: export the ONNX graphs as well, if what that needs is installed. Torch engines
            need none.
        family: `clipseg` (rd64-refined) or `lseg` (ViT-L/16).

    Returns:
        Whether it has graphs.

    Raises:
        EngineError: torch or open_clip is not installed.
    """
    missing = [name for name in ('torch', 'open_clip', 'safetensors', 'regex')
               if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(f'the model for benchmarks cannot be made without {", ".join(missing)}; '
                          'pip install "blabberseg_ros[torch]", or give a model by --bundle')
    import open_clip

    from blabberseg_ros.text import write_tokenizer_json

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.with_name(f'{folder.name}-{TOKENIZER}')
    write_tokenizer_json(Path(open_clip.__file__).parent / 'bpe_simple_vocab_16e6.txt.gz',
                         tokenizer)
    try:
        return write_model(_network(family), folder, graphs=graphs, tokenizer_json=tokenizer)
    finally:
        tokenizer.unlink()


def write_model(model: 'nn.Module', folder: Path, *, graphs: bool,
                tokenizer_json: Path | None = None) -> bool:
    """Write a network with random weights as a bundle; see `make_model`."""
    from blabberseg_ros.models.families import network_config

    config = network_config(model)
    name = f'random-{config.variant}'
    if graphs and importlib.util.find_spec('onnxscript') is not None:
        from blabberseg_ros.models.export import export_bundle

        export_bundle(model, folder, name=name, source=_SOURCE, licence=_LICENCE,
                      tokenizer_json=tokenizer_json, int8=True)
        return True
    from safetensors.torch import save_file

    from blabberseg_ros.models.folding import folded

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in folded(model).state_dict().items()},
              folder / WEIGHTS)
    if tokenizer_json is not None:
        shutil.copy(tokenizer_json, folder / TOKENIZER)
    write_manifest(folder, Manifest(
        family=config.family, name=name, variant=config.variant,
        input_size_px=config.input_size_px, architecture=config.to_dict(), graphs={},
        source=_SOURCE, licence=_LICENCE))
    return False


def _network(family: str) -> 'nn.Module':
    if family == 'lseg':
        from blabberseg_ros.models.lseg_config import LSegConfig
        from blabberseg_ros.models.random_lseg import random_lseg

        return random_lseg(LSegConfig())
    from blabberseg_ros.models.clipseg_config import ClipSegConfig
    from blabberseg_ros.models.random_clipseg import random_clipseg

    return random_clipseg(ClipSegConfig())
