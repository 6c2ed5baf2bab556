# SPDX-License-Identifier: Apache-2.0
"""Entry of the `blabberseg` command."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from blabberseg_ros import __version__
from blabberseg_ros.errors import BlabbersegError

# Modules of this package, in the order of the help page. Each has add_parser(subparsers), which
# sets `run`, a function from the parsed arguments to the exit code.
_COMMANDS = ('segment', 'doctor', 'bundles', 'import_bundle', 'export', 'build', 'engines',
             'train_demo', 'evaluate_demo', 'bench', 'compare', 'features', 'label', 'fpseg')
_EXIT_REFUSED = 2
_EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog='blabberseg', description='Landing heatmaps from open-vocabulary segmentation.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    subparsers = parser.add_subparsers(metavar='COMMAND', required=True)
    for command in _COMMANDS:
        import_module(f'blabberseg_ros.cli.{command}').add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code: 0 done, 1 done with findings, 2 refused, 130 interrupted.
    """
    parsed = build_parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except BlabbersegError as error:
        print(f'blabberseg: {error}', file=sys.stderr)
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        print('blabberseg: interrupted', file=sys.stderr)
        return _EXIT_INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
