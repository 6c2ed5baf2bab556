# SPDX-License-Identifier: Apache-2.0
"""`blabberseg engines`: look after the TensorRT plans that were built."""

import argparse

from blabberseg_ros.engines.plan_record import PlanRecord
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.errors import ParameterError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command and its own three."""
    parser = subparsers.add_parser('engines')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    listing = commands.add_parser('list', help='say what each plan is for')
    listing.set_defaults(run=run_list)
    verify = commands.add_parser(
        'verify', help='check plans against their records; exit code 1 if one is damaged')
    verify.add_argument('plan', nargs='*', help='names (default: all)')
    verify.set_defaults(run=run_verify)
    prune = commands.add_parser(
        'prune', help='remove damaged plans and what killed builds have left')
    prune.add_argument('--all', action='store_true', help='remove the whole plans as well')
    prune.set_defaults(run=run_prune)


def run_list(arguments: argparse.Namespace) -> int:
    """Print what each plan is for."""
    store = PlanStore()
    verdicts = store.verify()
    for verdict in verdicts:
        print(f'{verdict.name}')
        if verdict.record is not None:
            print(f'    {_describe(verdict.record)}')
        if not verdict.ok:
            print(f'    NOT USED: {verdict.problem}')
    print(f'{len(verdicts)} plans in {store.folder}')
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Print a line a plan; return 1 if one is damaged."""
    store = PlanStore()
    verdicts = {verdict.name: verdict for verdict in store.verify()}
    if unknown := [name for name in arguments.plan if name not in verdicts]:
        raise ParameterError(f'there is no plan {unknown[0]!r} in {store.folder}; '
                             '`blabberseg engines list` shows the names')
    chosen = [verdicts[name] for name in arguments.plan] or list(verdicts.values())
    for verdict in chosen:
        print(f'{verdict.name}: {"whole" if verdict.ok else f"DAMAGED: {verdict.problem}"}')
    damaged = sum(not verdict.ok for verdict in chosen)
    print(f'{len(chosen)} plans, {damaged} damaged')
    return 1 if damaged else 0


def run_prune(arguments: argparse.Namespace) -> int:
    """Print what was removed."""
    removed = PlanStore().prune(everything=arguments.all)
    for name in removed:
        print(f'removed {name}')
    print(f'{len(removed)} files removed')
    return 0


def _describe(record: PlanRecord) -> str:
    key = record.key
    gpu = f'{key.gpu} ({key.compute_capability})' if key.compute_capability else 'no GPU needed'
    parity = ', '.join(f'{name} {value:g}' for name, value in (record.parity or {}).items())
    return (f'{key.bundle} {key.stage} {key.precision}, {key.builder} {key.builder_version}, '
            f'{gpu}, {record.bytes / 1e6:.1f} MB, built {record.built_at} in '
            f'{record.build_s:.1f} s; parity: {parity or "not measured"}')
