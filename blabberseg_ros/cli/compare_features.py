# SPDX-License-Identifier: Apache-2.0
"""`blabberseg compare --features`: LSeg's features by several engines, precisions, checkpoints."""

import argparse
import csv
import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, fields
from pathlib import Path

from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import find_bundle, load_bundle
from blabberseg_ros.cli.pictures import read_inputs, write_png
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.lseg_config import rounded_size
from blabberseg_ros.parity.features import FeatureComparison, compare_features
from blabberseg_ros.parity.variants import Variant, kind_of

DEFAULT_SIZES_PX = (480, 384, 320, 256)
_BUNDLE = 'lseg_demo'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this way of comparing has of its own."""
    group = parser.add_argument_group('features', 'dense features of LSeg instead of masks')
    group.add_argument('--features', action='store_true',
                       help='print cosine and L2 of the features, over images and sizes')
    group.add_argument('--with', dest='others', action='append', default=[], metavar='C',
                       help='one more variant; every pair is compared')
    group.add_argument('--sizes', type=int, nargs='+', default=DEFAULT_SIZES_PX, metavar='PX',
                       help='squares that images are stretched to, rounded to multiples of 32 '
                            '(default: 480 384 320 256)')
    group.add_argument('--pictures', type=Path, metavar='DIR',
                       help='write both maps along their first principal axis, and where they '
                            'differ')


def run(arguments: argparse.Namespace, default_bundle: str) -> int:
    """Compare and print.

    Args:
        arguments: of `blabberseg compare`.
        default_bundle: that command's, in whose place LSeg's demo is taken.
    """
    bundle = _BUNDLE if arguments.bundle == default_bundle else arguments.bundle
    texts = dict.fromkeys((arguments.first, arguments.second, *arguments.others))
    sides = tuple(dict.fromkeys(rounded_size(size) for size in arguments.sizes))
    if sides != tuple(arguments.sizes):
        print(f'sizes, rounded to multiples of 32: {", ".join(map(str, sides))}')
    rows: list[FeatureComparison] = []
    print(f'{"first":24} {"second":24} {"image":20} {"size":>5} {"cosine":>10} '
          f'{"pixel mean":>10} {"pixel min":>10} {"L2":>10} {"relative":>10}')
    with ExitStack() as stack:
        variants = {text: _active(Variant.parse(text), bundle, stack) for text in texts}
        images = [(frame.stem, image)
                  for frame, image in read_inputs([arguments.input], arguments.limit)]
        for compared in compare_features(variants, images, sides):
            row = compared.figures
            rows.append(row)
            print(f'{row.first[:24]:24} {row.second[:24]:24} {row.image[:20]:20} '
                  f'{row.side_px:5} {row.cosine:10.7f} {row.mean_cosine:10.7f} '
                  f'{row.min_cosine:10.7f} {row.l2:10.4g} {row.relative_l2:10.2e}', flush=True)
            if arguments.pictures:
                pair = f'{_plain(row.first)}-{_plain(row.second)}'
                write_png(arguments.pictures / f'{row.image}_{row.side_px}_{pair}.png',
                          compared.picture)
    if arguments.out:
        _write_table(arguments.out, rows)
        print(f'\n{arguments.out}')
    return 0 if rows else 1


def _active(variant: Variant, default_bundle: str, stack: ExitStack) -> LSegBackend:
    bundle = load_bundle(find_bundle(variant.bundle or default_bundle))
    if bundle.manifest.family != LSegBackend.family:
        raise BundleError(f'{bundle.folder} is of the family {bundle.manifest.family}; features '
                          'are compared of bundles of LSeg')
    backend = LSegBackend(bundle, kind_of(variant.engine, variant.precision, bundle))
    backend.activate()
    stack.callback(backend.deactivate)
    return backend


def _plain(variant: str) -> str:
    """Return a variant as a part of a file's name."""
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_'
                   for letter in Path(variant).name or variant)


def _write_table(path: Path, rows: Sequence[FeatureComparison]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([field.name for field in fields(FeatureComparison)])
    writer.writerows(astuple(row) for row in rows)
    write_text(path, stream.getvalue())
