# SPDX-License-Identifier: Apache-2.0
"""`blabberseg bundles`: list and verify the models on this machine."""

import argparse

from blabberseg_ros.bundle import find_bundle, installed_bundles, load_bundle
from blabberseg_ros.errors import BundleError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'bundles',
        description='Lists the models that can be given by name, and checks every file against '
                    'its SHA-256. Exit code 1 if one is damaged.')
    parser.add_argument('bundle', nargs='*', help='names or folders (default: all installed)')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line a bundle."""
    folders = [find_bundle(name) for name in arguments.bundle] or installed_bundles()
    if not folders:
        print('No bundle is installed. `blabberseg import --help` tells how to make one.')
    damaged = 0
    for folder in folders:
        try:
            manifest = load_bundle(folder).manifest
        except BundleError as error:
            damaged += 1
            print(f'{folder.name}: DAMAGED: {error}')
            continue
        megabytes = sum(record.bytes for record in manifest.files.values()) / 1e6
        print(f'{folder.name}: {manifest.family} {manifest.variant}, {manifest.input_size_px} px, '
              f'{megabytes:.1f} MB, licence {manifest.licence}\n    {folder}')
    return 1 if damaged else 0
