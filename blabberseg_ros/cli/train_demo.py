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

if TYPE_CHECKING:
    from blabberseg_ros.models.clipseg import ClipSeg

_DEFAULT_CONFIG = Path(__file__).resolve().parent.parent.parent / 'config' / 'train_demo.yaml'


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'train-demo', help='train the demonstration bundle from nothing',
        description='Trains a small CLIPSeg on procedural worlds alone, judges it and writes '
                    'OUT/clipseg_demo.tar (the bundle), OUT/checkpoint.safetensors (every 90 s '
                    'and at the end), OUT/metrics.json and OUT/train.log. Needs torch and '
                    'open_clip_torch, and a large GPU for minutes.')
    parser.add_argument('--config', type=Path, default=_DEFAULT_CONFIG, metavar='FILE',
                        help='YAML file (default: config/train_demo.yaml)')
    parser.add_argument('--out', type=Path, default=Path('train_output'), metavar='FOLDER',
                        help='where to write (default: %(default)s)')
    parser.add_argument('--minutes', type=float, metavar='M',
                        help='end of training, counted from the start; the number of updates is '
                             'planned so and recorded (default: that of the configuration)')
    parser.add_argument('--continue-from', type=Path, metavar='CHECKPOINT|BUNDLE',
                        help='start from these weights instead of fresh ones; for a bundle, which '
                             'does not say how long it was trained, earlier_steps in the '
                             'configuration counts')
    parser.add_argument('--device', help='torch device (default: cuda if there is one)')
    parser.add_argument('--workers', type=int, default=max((os.cpu_count() or 2) - 1, 1),
                        help='processes that generate worlds (default: %(default)s)')
    parser.add_argument('--real-frames', type=Path, metavar='FOLDER',
                        help='folder with frames_dev/ and labels_dev/ to report on')
    parser.add_argument('--export-from', type=Path, metavar='CHECKPOINT',
                        help='train nothing; make OUT/clipseg_demo from this checkpoint, with '
                             'the figures of the metrics.json beside it')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, or export what was trained."""
    if arguments.export_from is not None:
        return _export(arguments.export_from, arguments.out)
    import torch

    from blabberseg_ros.training.config import TrainConfig
    from blabberseg_ros.training.session import Session

    config = TrainConfig.from_yaml(arguments.config)
    name = arguments.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ParameterError(f'{name!r} is not a torch device; use cuda or cpu') from error
    start = None
    if arguments.continue_from is not None:
        start, earlier_steps = _start(arguments.continue_from, config.earlier_steps)
        config = replace(config, model=start.config, earlier_steps=earlier_steps)
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
    Session(config, arguments.out, device, arguments.workers, arguments.real_frames, start).run(
        arguments.minutes)
    return 0


def _start(path: Path, earlier_steps: int) -> 'tuple[ClipSeg, int]':
    """Return the network to continue from, and the updates that it has had."""
    from blabberseg_ros.bundle import load_bundle
    from blabberseg_ros.models.load_clipseg import load_clipseg
    from blabberseg_ros.training.checkpoint import load_checkpoint

    if path.is_dir():
        return load_clipseg(load_bundle(path)), earlier_steps
    model, config = load_checkpoint(path)
    return model, config.earlier_steps + config.optimiser.steps


def _export(checkpoint: Path, out: Path) -> int:
    from blabberseg_ros.training.checkpoint import load_checkpoint
    from blabberseg_ros.training.session import (
        BUNDLE_NAME,
        METRICS,
        export_demo,
        write_demo_tokenizer,
    )

    model, config = load_checkpoint(checkpoint)
    figures = checkpoint.with_name(METRICS)
    metrics = json.loads(figures.read_text(encoding='utf-8')) if figures.is_file() else None
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer_json = Path(temporary) / 'tokenizer.json'
        write_demo_tokenizer(tokenizer_json)
        export_demo(model, config, metrics, tokenizer_json, out / BUNDLE_NAME)
    print(f'wrote {out / BUNDLE_NAME}')
    return 0
