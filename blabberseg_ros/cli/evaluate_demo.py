# SPDX-License-Identifier: Apache-2.0
"""`blabberseg evaluate-demo`: judge a bundle on worlds that it never saw."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from blabberseg_ros.atomic import write_text
from blabberseg_ros.bundle import CARD, find_bundle
from blabberseg_ros.cli.options import DEFAULT_BUNDLE
from blabberseg_ros.engines.choose import AUTO, DEVICES
from blabberseg_ros.errors import ParameterError

_USES = ('validation', 'test', 'held_out')
_FIGURES, _TABLES = 'evaluation.json', 'evaluation.md'


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'evaluate-demo',
        description='Chooses the threshold on validation worlds, then measures safe and unsafe '
                    'ground and obedience to prompts on test worlds of new seeds and of a family '
                    'held out from training. Writes OUT/evaluation.json and OUT/evaluation.md.')
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE,
                        help='folder, or name of an installed bundle (default: %(default)s)')
    parser.add_argument('--engine', default=AUTO, help='engine to use (default: the fastest)')
    parser.add_argument('--device', default=AUTO, choices=DEVICES)
    parser.add_argument('--worlds', type=int, default=12, metavar='N',
                        help='worlds of each kind (default: %(default)s)')
    parser.add_argument('--views', type=int, default=8, metavar='N',
                        help='views of each world (default: %(default)s)')
    parser.add_argument('--obedience-views', type=int, metavar='N',
                        help='test views that are asked with prompts moved and reworded, some '
                             'fifty times each (default: all)')
    parser.add_argument('--real-frames', type=Path, metavar='FOLDER',
                        help='folder with frames_dev/ and labels_dev/ to report on')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1,
                        help='processes that generate worlds (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('evaluation_output'), metavar='FOLDER',
                        help='where to write (default: %(default)s)')
    parser.add_argument('--update-card', action='store_true',
                        help="replace the figures in the bundle's README.md by these")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge, print and write."""
    for name in ('worlds', 'views', 'obedience_views', 'workers'):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ParameterError(f'--{name.replace("_", "-")} must be 1 or more')
    from blabberseg_ros.segmenter import Segmenter
    from blabberseg_ros.training.bundle_predictor import BundlePredictor
    from blabberseg_ros.training.card import tables, with_tables
    from blabberseg_ros.training.judging import judge, summary

    folder = find_bundle(arguments.bundle)
    views = _views(arguments)
    with Segmenter.open(folder, engine=arguments.engine, device=arguments.device) as segmenter:
        predictor = BundlePredictor(segmenter)
        metrics = judge(predictor, views, f'{segmenter.engine_name}, {segmenter.precision}',
                        arguments.obedience_views, predictor.reads_words)
    print(summary(metrics))
    write_text(arguments.out / _FIGURES, json.dumps(metrics, indent=1) + '\n')
    write_text(arguments.out / _TABLES, tables(metrics).lstrip())
    if arguments.update_card:
        card = folder / CARD
        write_text(card, with_tables(card.read_text(encoding='utf-8'), metrics))
    print(f'wrote {arguments.out}')
    return 0


def _views(arguments: argparse.Namespace) -> dict[str, Sequence]:
    from blabberseg_ros.training.config import WorldsConfig
    from blabberseg_ros.training.evaluation import read_real_frames
    from blabberseg_ros.training.worlds import WorldPool

    real = read_real_frames(arguments.real_frames) if arguments.real_frames else []
    with WorldPool(WorldsConfig(views=arguments.views), arguments.workers) as pool:
        waiting = {use: pool.views(use, arguments.worlds) for use in _USES}
        views = {use: [view for future in futures for view in future.result()]
                 for use, futures in waiting.items()}
    return {**views, 'real': real}
