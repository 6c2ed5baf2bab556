# SPDX-License-Identifier: Apache-2.0
"""`blabberseg train-demo`: train the demonstration bundle on the procedural world."""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.training.config import FAMILIES

if TYPE_CHECKING:
    from torch import nn

    from blabberseg_ros.models.clipseg import ClipSeg
    from blabberseg_ros.training.config import TrainConfig

_CONFIGS = Path(__file__).resolve().parent.parent.parent / 'config'
_DEFAULT_FAMILY = 'clipseg'


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'train-demo',
        description='Trains a small network on procedural worlds alone, judges it and writes '
                    'OUT/FAMILY_demo.tar (the bundle), OUT/checkpoint.safetensors (every 90 s '
                    'and at the end), OUT/metrics.json and OUT/train.log. Needs torch and '
                    'open_clip_torch, and a large GPU for minutes; with --tower-from two cores '
                    'for half an hour.')
    parser.add_argument('--family', choices=FAMILIES,
                        help=f'which network (default: {_DEFAULT_FAMILY}, or what --config says)')
    parser.add_argument('--config', type=Path, metavar='FILE',
                        help='YAML file (default: config/train_demo.yaml for clipseg, '
                             'config/train_FAMILY_demo.yaml for the others)')
    parser.add_argument('--out', type=Path, default=Path('train_output'), metavar='FOLDER',
                        help='where to write (default: %(default)s)')
    parser.add_argument('--minutes', type=float, metavar='M',
                        help='end of training, counted from the start; the number of updates is '
                             'planned so and recorded (default: that of the configuration)')
    parser.add_argument('--continue-from', type=Path, metavar='CHECKPOINT|BUNDLE',
                        help='start from these weights instead of fresh ones, as far as they have '
                             "the configuration's sizes; for a bundle, which does not say how "
                             'long it was trained, earlier_steps in the configuration counts')
    parser.add_argument('--tower-from', type=Path, metavar='BUNDLE',
                        help='start with the towers of this trained CLIPSeg (segformer, lseg with '
                             'a vit, fpseg with a sam_vit); optimiser.frozen_steps says how long '
                             'they are kept as they are')
    parser.add_argument('--device', help='torch device (default: cuda if there is one)')
    parser.add_argument('--workers', type=int, default=max((os.cpu_count() or 2) - 1, 1),
                        help='processes that generate worlds (default: %(default)s)')
    parser.add_argument('--world-cache', type=Path, metavar='FOLDER',
                        help='keep the worlds in this folder; runs that share it, also at the '
                             'same time, generate each world once (23 MB a world)')
    parser.add_argument('--real-frames', type=Path, metavar='FOLDER',
                        help='folder with frames_dev/ and labels_dev/ to report on')
    parser.add_argument('--export-from', type=Path, metavar='CHECKPOINT',
                        help='train nothing; make OUT/FAMILY_demo from this checkpoint, with '
                             'the figures of the metrics.json beside it')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, or export what was trained."""
    if arguments.export_from is not None:
        return _export(arguments.export_from, arguments.out)
    import torch

    from blabberseg_ros.training.session import Session

    config = _config(arguments.family, arguments.config)
    name = arguments.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ParameterError(f'{name!r} is not a torch device; use cuda or cpu') from error
    start = None
    if arguments.continue_from is not None:
        start, earlier_steps = _start(arguments.continue_from, config)
        config = replace(config, earlier_steps=earlier_steps)
    tower = None
    if arguments.tower_from is not None:
        tower, tower_name = _tower(arguments.tower_from)
        config = replace(config, tower=tower_name)
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
    Session(config, arguments.out, device, arguments.workers, arguments.real_frames, start,
            arguments.world_cache, tower).run(arguments.minutes)
    return 0


def _config(family: str | None, path: Path | None) -> 'TrainConfig':
    """Read the configuration that was asked for.

    Raises:
        ParameterError: the file is for another family.
    """
    from blabberseg_ros.training.config import TrainConfig

    if path is None:
        name = 'train_demo' if family in (None, _DEFAULT_FAMILY) else f'train_{family}_demo'
        path = _CONFIGS / f'{name}.yaml'
    config = TrainConfig.from_yaml(path)
    if family not in (None, config.family):
        raise ParameterError(
            f'{path} is for the family {config.family}, not {family}; leave --family or --config '
            'out')
    return config


def _start(path: Path, config: 'TrainConfig') -> 'tuple[nn.Module, int]':
    """Return the network to continue from, and the updates that it has had.

    Raises:
        ParameterError: it is of another family.
    """
    from blabberseg_ros.bundle import load_bundle
    from blabberseg_ros.models.families import load_network
    from blabberseg_ros.training.checkpoint import load_checkpoint

    if path.is_dir():
        bundle = load_bundle(path)
        family, model, earlier_steps = (
            bundle.manifest.family, load_network(bundle), config.earlier_steps)
    else:
        model, earlier = load_checkpoint(path)
        family, earlier_steps = earlier.family, earlier.all_steps
    if family != config.family:
        raise ParameterError(f'{path} is of the family {family} and the configuration for '
                             f'{config.family}; a network can only continue as what it is')
    return model, earlier_steps


def _tower(path: Path) -> 'tuple[ClipSeg, str]':
    """Return the CLIPSeg of a bundle, and the bundle's name.

    Raises:
        ParameterError: it is of another family.
    """
    from blabberseg_ros.bundle import load_bundle
    from blabberseg_ros.models.clipseg import ClipSeg
    from blabberseg_ros.models.families import load_network

    bundle = load_bundle(path)
    network = load_network(bundle)
    if not isinstance(network, ClipSeg):
        raise ParameterError(f'{path} is no CLIPSeg; --tower-from takes a bundle of that family')
    return network, bundle.manifest.name


def _export(checkpoint: Path, out: Path) -> int:
    from blabberseg_ros.training.checkpoint import load_checkpoint
    from blabberseg_ros.training.family import bundle_name, family_class
    from blabberseg_ros.training.session import METRICS

    model, config = load_checkpoint(checkpoint)
    figures = checkpoint.with_name(METRICS)
    metrics = json.loads(figures.read_text(encoding='utf-8')) if figures.is_file() else None
    folder = out / bundle_name(config.family)
    with tempfile.TemporaryDirectory() as temporary:
        family_class(config.family)(Path(temporary)).export(model, config, metrics, folder)
    print(f'wrote {folder}')
    return 0
