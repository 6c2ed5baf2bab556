# SPDX-License-Identifier: Apache-2.0
"""`blabberseg build`: TensorRT plans ahead of the first flight, without a node."""

import argparse
import logging
import re
from pathlib import Path

from blabberseg_ros.bundle import Bundle, find_bundle, load_bundle
from blabberseg_ros.cli.options import DEFAULT_BUNDLE
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.engines.tensorrt import obtain_plan, remember_options
from blabberseg_ros.engines.tensorrt_builder import TENSORRT, TENSORRT_RTX, load_library
from blabberseg_ros.engines.tensorrt_options import (
    HARDWARE_COMPATIBILITY,
    MAX_OPTIMISATION_LEVEL,
    PRECISIONS,
    BuildOptions,
    ImageRange,
    Range,
)
from blabberseg_ros.errors import ParameterError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    default = BuildOptions()
    parser = subparsers.add_parser(
        'build',
        description="Builds the plan of every stage and keeps it in the user's cache, where the "
                    'engine "tensorrt" finds it. Plans that fit this machine already are kept.')
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE,
                        help='folder, or name of an installed bundle (default: %(default)s)')
    parser.add_argument('--builder', choices=(TENSORRT, TENSORRT_RTX), default=TENSORRT,
                        help='%(choices)s: the latter needs no GPU and proves that the graphs '
                             'build; its plans are not run by this package (default: %(default)s)')
    parser.add_argument('--stage', action='append', metavar='NAME',
                        help='build this stage only; may be given several times')
    parser.add_argument('--precision', default=default.precision,
                        help=f'{", ".join(PRECISIONS)} (default: %(default)s)')
    group = parser.add_argument_group('shapes')
    group.add_argument('--prompts', type=int, nargs=3, metavar=('MIN', 'OPT', 'MAX'),
                       default=_numbers(default.prompts),
                       help='numbers of prompts (default: %(default)s)')
    group.add_argument('--image-sizes', nargs='+', metavar='WxH',
                       help='fixed sizes of camera images, which run faster than a range')
    group.add_argument('--heights', type=int, nargs=3, metavar=('MIN', 'OPT', 'MAX'),
                       default=_numbers(default.image_sizes[0].heights),
                       help='range of image heights in pixels (default: %(default)s)')
    group.add_argument('--widths', type=int, nargs=3, metavar=('MIN', 'OPT', 'MAX'),
                       default=_numbers(default.image_sizes[0].widths),
                       help='range of image widths in pixels (default: %(default)s)')
    group.add_argument('--input-sizes', type=int, nargs=3, metavar=('MIN', 'OPT', 'MAX'),
                       default=_numbers(default.input_sizes),
                       help='sides of what images are stretched to, of models that take any size '
                            '(LSeg: multiples of 32; default: %(default)s)')
    _add_builder_options(parser.add_argument_group('builder'), default)
    parser.set_defaults(run=run)


def _add_builder_options(group: argparse._ArgumentGroup, default: BuildOptions) -> None:
    group.add_argument('--workspace-mib', type=int, metavar='MIB',
                       help='limit of the scratch memory (default: that of the library)')
    group.add_argument('--optimisation-level', type=int, default=default.optimisation_level,
                       metavar='N', help=f'0 builds fastest, {MAX_OPTIMISATION_LEVEL} searches '
                                         'longest (default: %(default)s)')
    group.add_argument('--timing-cache', type=Path, metavar='FILE',
                       help='keep measurements here for the next build')
    group.add_argument('--sparse', action='store_true', help='allow 2:4 sparse weights')
    group.add_argument('--version-compatible', action='store_true',
                       help='the plan also runs on later versions of TensorRT, slower')
    group.add_argument('--hardware-compatibility', choices=HARDWARE_COMPATIBILITY,
                       default=default.hardware_compatibility, help='other GPUs that may run the '
                                                                    'plan (default: %(default)s)')
    group.add_argument('--dla-core', type=int, metavar='N',
                       help='deep-learning accelerator of a Jetson; the GPU runs the rest')


def run(arguments: argparse.Namespace) -> int:
    """Build what is missing and say what was done."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    options = _options(arguments)
    bundle = load_bundle(find_bundle(arguments.bundle))
    library = load_library(arguments.builder)
    store = PlanStore()
    for stage in _stages(bundle, arguments.stage):
        obtained = obtain_plan(bundle, stage, library, options, store)
        record = obtained.plan.record
        verb = f'built in {record.build_s:.1f} s' if obtained.built else 'kept'
        print(f'{stage}: {verb} ({obtained.reason}), {record.key.precision}, '
              f'{record.bytes / 1e6:.1f} MB\n    {obtained.plan.path}')
    if library.name == TENSORRT:
        remember_options(bundle, options, store)
        print('The engine "tensorrt" uses these options for this model from now on.')
    else:
        print('These plans are of TensorRT-RTX: the graphs build. They are not run by this '
              'package; the engine "tensorrt" builds its own on the GPU that it runs on.')
    return 0


def _options(arguments: argparse.Namespace) -> BuildOptions:
    if arguments.image_sizes:
        sizes = tuple(_fixed_size(text) for text in arguments.image_sizes)
    else:
        sizes = (ImageRange(Range(*arguments.heights), Range(*arguments.widths)),)
    return BuildOptions(
        precision=arguments.precision, prompts=Range(*arguments.prompts), image_sizes=sizes,
        input_sizes=Range(*arguments.input_sizes),
        workspace_mib=arguments.workspace_mib, optimisation_level=arguments.optimisation_level,
        timing_cache=arguments.timing_cache, sparse=arguments.sparse,
        version_compatible=arguments.version_compatible,
        hardware_compatibility=arguments.hardware_compatibility, dla_core=arguments.dla_core)


def _fixed_size(text: str) -> ImageRange:
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    if match is None:
        raise ParameterError(f'{text!r} is not an image size; write it as 640x480')
    return ImageRange.fixed(width=int(match[1]), height=int(match[2]))


def _stages(bundle: Bundle, wanted: list[str] | None) -> list[str]:
    # Graphs named STAGE_PRECISION are variants of a stage, not stages.
    stages = [name for name in bundle.manifest.graphs
              if name.rpartition('_')[2] not in (*PRECISIONS, 'int8')]
    for name in wanted or ():
        if name not in stages:
            raise ParameterError(f'the bundle has no stage {name!r}; it has {", ".join(stages)}')
    return wanted or stages


def _numbers(axis: Range) -> tuple[int, int, int]:
    return axis.minimum, axis.optimum, axis.maximum
