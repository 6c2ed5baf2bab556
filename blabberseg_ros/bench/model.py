# SPDX-License-Identifier: Apache-2.0
"""The model for speed: CLIPSeg rd64-refined in full size, with random weights.

What a network computes decides its answers, not its speed, so nothing has to be downloaded.
"""

import importlib.util
from pathlib import Path

from blabberseg_ros.bundle import TOKENIZER, WEIGHTS, Manifest, write_manifest
from blabberseg_ros.errors import EngineError

NAME = 'random-rd64-refined'
_SOURCE, _LICENCE = 'random weights', 'none needed'


def make_model(folder: Path, *, graphs: bool) -> bool:
    """Write the model as a bundle.

    Args:
        folder: of the bundle; made if absent.
        graphs: export the ONNX graphs as well, if what that needs is installed. Torch engines
            need none.

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

    from blabberseg_ros.models.clipseg_config import ClipSegConfig
    from blabberseg_ros.models.random_clipseg import random_clipseg
    from blabberseg_ros.text import write_tokenizer_json

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.with_name(f'{folder.name}-{TOKENIZER}')
    write_tokenizer_json(Path(open_clip.__file__).parent / 'bpe_simple_vocab_16e6.txt.gz',
                         tokenizer)
    config = ClipSegConfig()
    model = random_clipseg(config)
    if graphs and importlib.util.find_spec('onnxscript') is not None:
        from blabberseg_ros.models.export_clipseg import export_bundle

        export_bundle(model, folder, name=NAME, source=_SOURCE, licence=_LICENCE,
                      tokenizer_json=tokenizer)
        return True
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()},
              folder / WEIGHTS)
    tokenizer.replace(folder / TOKENIZER)
    write_manifest(folder, Manifest(
        family='clipseg', name=NAME, variant=config.variant, input_size_px=config.input_size_px,
        architecture=config.to_dict(), graphs={}, source=_SOURCE, licence=_LICENCE))
    return False
