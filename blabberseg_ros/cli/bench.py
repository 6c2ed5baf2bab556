# SPDX-License-Identifier: Apache-2.0
"""`blabberseg bench`: how fast this machine answers, beside the programs that are replaced."""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path

from blabberseg_ros.bench import machine, records
from blabberseg_ros.bundle import find_bundle, load_bundle
from blabberseg_ros.cli import bench_lseg, bench_rate, bench_segformer
from blabberseg_ros.cli.options import add_prompt_options, gives_prompts
from blabberseg_ros.errors import BundleError, ParameterError

_RESULTS = Path('benchmarks/results')
_BATCH = 64
_FAMILY = 'clipseg'
# Other families with a table of their own.
_TABLES: dict[str, Callable[[argparse.Namespace], int]] = {
    'lseg': bench_lseg.run, 'segformer': bench_segformer.run}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'bench',
        description="Measures every engine that can be used here, and in the same run DOVESEI's "
                    "and BlabberSeg's own ways, on the same weights: from the image on the host "
                    'to the mask on the host. Exit code 1 if nothing was measured.')
    parser.add_argument('--bundle', help='model to measure (default: a full-size rd64-refined '
                                         'with random weights, made for the run); of one of '
                                         'another family frames a second are printed')
    parser.add_argument('--engine', action='append', metavar='NAME[:PRECISION]',
                        help='engine to measure; may be given several times (default: all)')
    parser.add_argument('--quick', action='store_true',
                        help='thirteen prompts at 640x480 only, fewer repetitions')
    parser.add_argument('--no-baselines', action='store_true', help='measure our engines only')
    parser.add_argument('--baseline-repeats', type=int, metavar='N',
                        help='repetitions of the baselines (default: 2 on a CPU, where one takes '
                             'a quarter of a minute, 20 on a GPU)')
    parser.add_argument('--batch', type=int, default=_BATCH, metavar='N',
                        help='frames at once in the offline variant (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=_RESULTS, metavar='FOLDER|FILE.csv',
                        help='where to write (default: %(default)s)')
    parser.add_argument('--commit', help='commit to record, where there is no git')
    parser.add_argument('--backend', choices=(_FAMILY, *_TABLES),
                        help='family whose table to measure; lseg prints image size by stage by '
                             'engine, segformer B4 at 512 pixels (default: that of the bundle, '
                             'clipseg without one)')
    bench_lseg.add_options(parser)
    add_prompt_options(parser, 'of a bundle that is not of CLIPSeg: those that it knows best, '
                               'unless given')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the CSV and the plot, print a table."""
    named = load_bundle(find_bundle(arguments.bundle)) if arguments.bundle else None
    if arguments.backend is None and named and named.manifest.family != _FAMILY:
        return bench_rate.run(arguments, named)
    if gives_prompts(arguments):
        raise ParameterError('the tables have prompts of their own, so that they can be compared; '
                             'leave --prompts, --positive and --negative out')
    if arguments.backend in _TABLES:
        return _TABLES[arguments.backend](arguments)
    if named and named.manifest.family != _FAMILY:
        raise BundleError(f'{named.folder} is of the family {named.manifest.family}; leave '
                          '--backend out to have its frames a second')
    from blabberseg_ros.bench.model import make_model
    from blabberseg_ros.bench.plot import write_plot
    from blabberseg_ros.bench.run import Plan, jobs_for, needs_graphs, run_jobs
    from blabberseg_ros.parity.variants import Variant

    for name in ('baseline_repeats', 'batch'):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ParameterError(f'--{name.replace("_", "-")} is {value}; it must be 1 or more')
    plan = Plan(arguments.quick,
                tuple(Variant.parse(f'@{text}') for text in arguments.engine or ()),
                not arguments.no_baselines, arguments.baseline_repeats, arguments.batch)
    now = datetime.now(timezone.utc)
    with tempfile.TemporaryDirectory(prefix='blabberseg-bench-') as folder:
        if named:
            bundle = named.folder
        else:
            bundle = Path(folder) / 'model'
            print('Making a full-size model with random weights', flush=True)
            make_model(bundle, graphs=needs_graphs(plan))
        about = records.Run(
            now.isoformat(timespec='seconds'), arguments.commit or machine.commit(),
            machine.threads(), load_bundle(bundle, verify=False).manifest.name,
            machine.versions())
        path, rows = arguments.out, []
        jobs = jobs_for(plan, str(bundle), folder)
        for rows in run_jobs(jobs, lambda line: print(line, flush=True)):
            if path.suffix != '.csv':
                path /= f'{_slug(rows[0].device)}-{now:%Y-%m-%d}.csv'
            records.write_rows(path, about, rows)
    if not rows:
        print('nothing could be measured; `blabberseg doctor` tells what is missing')
        return 1
    write_plot(path)
    print('\n'.join(_table(rows)))
    print(f'\n{path} and {path.with_suffix(".svg").name}')
    return 0


def _table(rows: Iterable[records.Row]) -> list[str]:
    lines = ['', f'{"engine":22} {"":5} {"scenario":36} {"prompts":>7} {"input":>8} {"n":>5} '
                 f'{"p50 ms":>10} {"p99 ms":>10} {"x dovesei":>9} {"max |dp|":>9}']
    for row in rows:
        scenario = f'{row.scenario}: {row.detail}' if row.detail else row.scenario
        ratio = '' if row.ratio_to_dovesei is None else f'{row.ratio_to_dovesei:.1f}'
        apart = '' if row.max_dp is None else f'{row.max_dp:.1e}'
        lines.append(f'{row.engine:22} {row.precision:5} {scenario:36} {row.prompts:7} '
                     f'{row.input:>8} {row.n:5} {row.p50_ms:10.3f} {row.p99_ms:10.3f} '
                     f'{ratio:>9} {apart:>9}')
    return lines


def _slug(text: str) -> str:
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:48]
