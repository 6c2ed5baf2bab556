# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands around LSeg's features share."""

import argparse

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.cli.options import add_model_options
from blabberseg_ros.errors import BundleError, ParameterError
from blabberseg_ros.segmenter import Segmenter

_BUNDLE = 'lseg_demo'


def add_lseg_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an LSeg model, its engine and the size of its input."""
    add_model_options(parser)
    parser.set_defaults(bundle=_BUNDLE)
    parser.add_argument('--size', metavar='PX|WxH', type=_size,
                        help='what images are stretched to, sides in multiples of 32 (default: '
                             "the bundle's square)")


def open_lseg(arguments: argparse.Namespace) -> tuple[Segmenter, LSegBackend]:
    """Return the segmenter that the options ask for, active, and its back-end.

    Raises:
        BundleError: the bundle is none of LSeg's.
    """
    segmenter = Segmenter.open(arguments.bundle, backend=arguments.backend,
                               engine=arguments.engine, device=arguments.device)
    if not isinstance(segmenter.backend, LSegBackend):
        raise BundleError(
            f'{arguments.bundle} is of the family {segmenter.bundle.manifest.family}, and only '
            'LSeg gives a vector for every pixel; choose a bundle of LSeg')
    segmenter.activate()
    # Another engine may have taken over.
    backend = segmenter.backend
    if not isinstance(backend, LSegBackend):
        raise BundleError(f'{arguments.bundle} changed its family')
    return segmenter, backend


def input_size(arguments: argparse.Namespace, backend: LSegBackend) -> tuple[int, int]:
    """Return (height, width) of what images are stretched to."""
    side = backend.map_size_px
    return arguments.size or (side, side)


def _size(text: str) -> tuple[int, int]:
    """Read `480` or `640x480` as (height, width)."""
    width, _, height = text.partition('x')
    if not width.isdecimal() or not (height or width).isdecimal():
        raise ParameterError(f'{text!r} is not a size; give a side, as 480, or width and height, '
                             'as 640x480')
    return int(height or width), int(width)
