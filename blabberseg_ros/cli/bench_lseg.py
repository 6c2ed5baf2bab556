# SPDX-License-Identifier: Apache-2.0
"""`blabberseg bench --backend lseg`: the tables of LSeg-TensorRT and of LSeg's image encoder."""

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from blabberseg_ros.bench import machine, records
from blabberseg_ros.bundle import Bundle, find_bundle, load_bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.engines.choose import AUTO, usable_engines
from blabberseg_ros.errors import BundleError, EngineError
from blabberseg_ros.prompts import default_prompts

if TYPE_CHECKING:
    from blabberseg_ros.bench.timing import Limits

BACKEND = 'lseg'
# Those of LSeg-TensorRT's README.
_SIZES_PX = (260, 390, 520, 650, 780, 910)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this table has of its own."""
    group = parser.add_argument_group('LSeg')
    group.add_argument('--sizes', type=int, nargs='+', default=_SIZES_PX, metavar='PX',
                       help='of lseg: squares to measure, rounded to multiples of 32 (default: '
                            '260 390 520 650 780 910)')


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table and write the CSV."""
    from blabberseg_ros.bench.lseg_table import table
    from blabberseg_ros.bench.model import make_model
    from blabberseg_ros.bench.timing import Limits

    limits = Limits(5, 2.0) if arguments.quick else Limits()
    rows: list[records.Row] = []
    with tempfile.TemporaryDirectory(prefix='blabberseg-bench-') as folder:
        if arguments.bundle:
            path = find_bundle(arguments.bundle)
        else:
            path = Path(folder) / 'model'
            print('Making a ViT-L/16 with random weights', flush=True)
            make_model(path, graphs=True, family=BACKEND)
        bundle = load_bundle(path, verify=False)
        if bundle.manifest.family != BACKEND:
            raise BundleError(f'{path} is of the family {bundle.manifest.family}, and the '
                              'back-end lseg was asked for')
        for row in _measure(bundle, arguments, limits):
            print(f'{row.engine} {row.precision}, {row.input}, {row.scenario}: {row.p50_ms:.2f} '
                  'ms', flush=True)
            rows.append(row)
    return finish(arguments, bundle, rows, table(rows, arguments.sizes))


def finish(arguments: argparse.Namespace, bundle: Bundle, rows: Sequence[records.Row],
           lines: Sequence[str]) -> int:
    """Print a family's table and write its rows; return the exit code."""
    if not rows:
        print('nothing could be measured; `blabberseg doctor` tells what is missing')
        return 1
    print('\n'.join(lines))
    now, out = datetime.now(timezone.utc), arguments.out
    if out.suffix != '.csv':
        out /= f'{bundle.manifest.family}-{now:%Y-%m-%d-%H%M}.csv'
    records.write_rows(out, records.Run(
        now.isoformat(timespec='seconds'), arguments.commit or machine.commit(),
        machine.threads(), bundle.manifest.name, machine.versions()), rows)
    print(f'\n{out}')
    return 0


def _measure(bundle: Bundle, arguments: argparse.Namespace,
             limits: 'Limits') -> Iterator[records.Row]:
    """Measure the plain network and every engine; one that fails is named and left out."""
    from blabberseg_ros.bench.lseg_table import measure_engine, measure_plain

    kinds = chosen_kinds(arguments, bundle)
    prompts = default_prompts()
    if not arguments.no_baselines and importlib.util.find_spec('torch') is not None:
        devices = dict.fromkeys(kind.device for kind in kinds)
        for device in devices:
            yield from measure_plain(bundle, device, arguments.sizes, prompts, limits)
    for kind in kinds:
        try:
            yield from measure_engine(bundle, kind, arguments.sizes, prompts, limits)
        except EngineError as error:
            print(f'{kind.name} is left out: {error}', flush=True)


def chosen_kinds(arguments: argparse.Namespace, bundle: Bundle) -> list[EngineKind]:
    """Return the engines that are named, or all that can be used."""
    from blabberseg_ros.parity.variants import Variant, kind_of

    if arguments.engine:
        variants = [Variant.parse(f'@{text}') for text in arguments.engine]
        return [kind_of(variant.engine, variant.precision, bundle) for variant in variants]
    return list(usable_engines(AUTO, AUTO, bundle))
