# SPDX-License-Identifier: Apache-2.0
"""`blabberseg export`: write a bundle again with another input size, storage or aliases."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from blabberseg_ros.bundle import CARD, TOKENIZER, find_bundle, load_bundle
from blabberseg_ros.cli.import_bundle import check_is_ours, require_torch
from blabberseg_ros.errors import BundleError
from blabberseg_ros.labels import read_aliases


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'export',
        description='Exports the graphs of a bundle anew, into another bundle. A smaller input '
                    'is faster and sees less; fp16 storage halves the file.')
    parser.add_argument('bundle', help='name or folder')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER',
                        help='the new bundle; its name is that of the folder')
    parser.add_argument('--input-size', type=int, metavar='PX',
                        help='side of the square input, in the steps that the family takes '
                             '(default: as it was)')
    parser.add_argument('--storage', choices=('fp32', 'fp16'), default='fp32',
                        help='type of the stored matrices (default: %(default)s)')
    parser.add_argument('--int8', action='store_true',
                        help='add a graph on 8-bit integers for the engine onnxruntime-cpu-int8')
    parser.add_argument('--aliases', type=Path, metavar='FILE',
                        help='YAML file with other words for the labels (default: as they were)')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load, export and say where the bundle is."""
    require_torch()
    from blabberseg_ros.models.export import export_bundle
    from blabberseg_ros.models.families import load_network

    bundle = load_bundle(find_bundle(arguments.bundle))
    folder = arguments.out.expanduser()
    if folder.resolve() == bundle.folder.resolve():
        raise BundleError(f'{folder} is the bundle itself; give another folder by --out')
    check_is_ours(folder)
    model: Any = load_network(bundle)
    if arguments.input_size:
        model.config = replace(model.config, input_size_px=arguments.input_size)
    aliases = read_aliases(arguments.aliases) if arguments.aliases else bundle.aliases
    card, tokenizer = bundle.folder / CARD, bundle.folder / TOKENIZER
    manifest = bundle.manifest
    export_bundle(model, folder, name=folder.resolve().name, source=manifest.source,
                  licence=manifest.licence,
                  tokenizer_json=tokenizer if tokenizer.is_file() else None,
                  storage=arguments.storage,
                  vocabulary=tuple(bundle.vocabulary) if bundle.vocabulary else None,
                  aliases=aliases,
                  card=card.read_text(encoding='utf-8') if card.is_file() else None,
                  int8=arguments.int8)
    print(f'{folder}: {model.config.title} {manifest.variant}, {model.config.input_size_px} px')
    return 0
