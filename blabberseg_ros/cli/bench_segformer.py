# SPDX-License-Identifier: Apache-2.0
"""`blabberseg bench --backend segformer`: B4 at 512 pixels beside eager torch and OpenCV."""

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blabberseg_ros.bench import records
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.cli.bench_lseg import chosen_kinds, finish
from blabberseg_ros.errors import EngineError, ParameterError

if TYPE_CHECKING:
    from blabberseg_ros.bench.timing import Limits


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table and write the CSV.

    Raises:
        ParameterError: a bundle was given; both sides need the same weights, which are made here.
        EngineError: transformers, which makes them, is not installed.
    """
    if arguments.bundle:
        raise ParameterError('the table of Segformer is measured on weights that both sides can '
                             'run, and which are made for the run; leave --bundle out, or leave '
                             '--backend out to have the frames a second of the bundle')
    if importlib.util.find_spec('transformers') is None:
        raise EngineError('transformers is not installed, which this table needs; pip install '
                          'transformers')
    from blabberseg_ros.bench.segformer_table import make_models, table
    from blabberseg_ros.bench.timing import Limits

    limits = Limits(5, 2.0) if arguments.quick else Limits()
    rows = []
    with tempfile.TemporaryDirectory(prefix='blabberseg-bench-') as folder:
        print('Making a B4 with random weights', flush=True)
        theirs, bundle = make_models(Path(folder), graphs=True)
        for row in _measure(theirs, bundle, arguments, limits):
            print(f'{row.engine} {row.precision}, {row.scenario} {row.detail}: {row.p50_ms:.2f} '
                  'ms', flush=True)
            rows.append(row)
        return finish(arguments, bundle, rows, table(rows))


def _measure(theirs: Path, bundle: Bundle, arguments: argparse.Namespace,
             limits: 'Limits') -> Iterator[records.Row]:
    """Measure the plain network and every engine; one that fails is named and left out."""
    from blabberseg_ros.bench.segformer_table import measure_engine, measure_plain

    kinds = chosen_kinds(arguments, bundle)
    if not arguments.no_baselines:
        for device in dict.fromkeys(kind.device for kind in kinds):
            yield from measure_plain(theirs, bundle, device, limits)
    for kind in kinds:
        try:
            yield from measure_engine(bundle, kind, limits)
        except EngineError as error:
            print(f'{kind.name} is left out: {error}', flush=True)
