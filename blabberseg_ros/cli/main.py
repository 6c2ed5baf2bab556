# SPDX-License-Identifier: Apache-2.0
"""Entry of the `blabberseg` command."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from blabberseg_ros import __version__
from blabberseg_ros.errors import BlabbersegError

# Commands in the order of the help page, each with its line there. Their modules, of the same
# names, have add_parser(subparsers), which sets `run`, a function from the parsed arguments to the
# exit code. Only the module of the command that is given is imported: `doctor` has to start where
# NumPy and OpenCV, which most others need, are missing.
_COMMANDS = {
    'segment': 'write masks and overlays of images, a folder or a video',
    'doctor': 'tell what this machine can run and what is missing',
    'bundles': 'list the installed models and check their files',
    'import': 'make a bundle from published weights',
    'export': 'write a bundle again with another input size, storage or aliases',
    'build': 'build TensorRT plans of a bundle',
    'engines': 'list, verify or prune the TensorRT plans that were built',
    'train-demo': 'train a demonstration bundle from nothing',
    'evaluate-demo': 'judge a bundle on procedural worlds and on real frames',
    'bench': 'measure speed and memory on this machine, as CSV and SVG',
    'compare': 'compare two engines, precisions or models over a folder of images',
    'features': 'write dense features of images, for maps',
    'label': 'colour images by labels of your own, or by the words that fit best',
    'fpseg': 'tools of FPSeg: embed, tune, distil, evaluate, bench, export, build'}
_KEYWORD_MODULES = {'import': 'import_bundle'}
_EXIT_REFUSED = 2
_EXIT_INTERRUPTED = 130


def build_parser(command: str = '') -> argparse.ArgumentParser:
    """Return the parser; of the sub-commands only the given one knows its options."""
    parser = argparse.ArgumentParser(
        prog='blabberseg', description='Landing heatmaps from open-vocabulary segmentation.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    subparsers = parser.add_subparsers(metavar='COMMAND', required=True)
    for name, brief in _COMMANDS.items():
        if name == command:
            module = _KEYWORD_MODULES.get(name, name.replace('-', '_'))
            import_module(f'blabberseg_ros.cli.{module}').add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=brief)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code: 0 done, 1 done with findings, 2 refused, 130 interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Options before the command print something and end.
        parsed = build_parser(given[0] if given else '').parse_args(given)
        return parsed.run(parsed)
    except BlabbersegError as error:
        print(f'blabberseg: {error}', file=sys.stderr)
        return _EXIT_REFUSED
    except ImportError as error:
        if (error.name or '').startswith('blabberseg_ros'):
            raise
        print(f'blabberseg: {error}, and `blabberseg {given[0]}` needs it; `blabberseg doctor` '
              'tells what is missing here and how to install it', file=sys.stderr)
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        print('blabberseg: interrupted', file=sys.stderr)
        return _EXIT_INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
