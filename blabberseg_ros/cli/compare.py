# SPDX-License-Identifier: Apache-2.0
"""`blabberseg compare`: how far two engines, precisions or models are apart on real images."""

import argparse
import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.base import Backend
from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bundle import Bundle, find_bundle, load_bundle
from blabberseg_ros.cli import compare_features
from blabberseg_ros.cli.options import (
    DEFAULT_BUNDLE,
    add_fusion_options,
    add_prompt_options,
    fusion_from,
    prompts_from,
)
from blabberseg_ros.cli.pictures import read_inputs
from blabberseg_ros.errors import ParameterError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.parity.compare import (
    FIXED_THRESHOLD,
    Comparison,
    ImageComparison,
    Judged,
    compare,
)
from blabberseg_ros.parity.gate import COSINE_REQUIRED, IOU_REQUIRED
from blabberseg_ros.parity.metrics import AREA_FRACTIONS, FLIP_MARGIN
from blabberseg_ros.parity.variants import Variant, kind_of
from blabberseg_ros.prompts import PromptSet


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'compare',
        description='A and B are [BUNDLE][@ENGINE[:PRECISION]], for example @torch-cpu and '
                    '@torch-cuda:fp16; A is the reference. Exit code 1 if a pixel that is clear '
                    'in A changes sides in B, or if no mask is decidable.')
    parser.add_argument('first', metavar='A')
    parser.add_argument('second', metavar='B')
    parser.add_argument('input', type=Path, metavar='FOLDER', help='or one image, or a video')
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE,
                        help='model where A or B names none (default: %(default)s)')
    parser.add_argument('--fixed-threshold', type=float, default=FIXED_THRESHOLD, metavar='P',
                        help='probability for the masks with a fixed threshold (default: '
                             '%(default)s)')
    parser.add_argument('--layers', action='store_true',
                        help='name the first node of each stage that is over the tolerance, on '
                             'the first image. Operators are compared one by one, not what torch '
                             'and TensorRT fuse of them; plans that TensorRT builds for it are '
                             'not kept')
    parser.add_argument('--tolerance', type=float, metavar='E',
                        help='relative error allowed for a node (default: by precision)')
    parser.add_argument('--limit', type=int, metavar='N', help='look at the first N images only')
    parser.add_argument('--out', type=Path, metavar='FILE.csv', help='write a row for each image')
    compare_features.add_options(parser)
    add_prompt_options(parser)
    add_fusion_options(parser)
    # The floor of the demo would hide what the engines do below it.
    parser.set_defaults(run=run, min_threshold=0.0)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    if arguments.limit is not None and arguments.limit < 1:
        raise ParameterError(f'--limit is {arguments.limit}; it must be 1 or more')
    if arguments.features:
        return compare_features.run(arguments, DEFAULT_BUNDLE)
    prompts, fusion = prompts_from(arguments), fusion_from(arguments)
    backends = [_backend(Variant.parse(text), arguments.bundle)
                for text in (arguments.first, arguments.second)]
    print(f'A  {_describe(backends[0])}\nB  {_describe(backends[1])}')
    if arguments.layers:
        from blabberseg_ros.parity.layers import TOLERANCE

        tolerance = arguments.tolerance or max(
            TOLERANCE.get(backend.precision, TOLERANCE['fp16']) for backend in backends)
        return _print_layers(backends, next(_images(arguments.input, 1))[1], prompts, fusion,
                             tolerance)
    with ExitStack() as stack:
        for backend in backends:
            backend.activate()
            stack.callback(backend.deactivate)
        result = compare(backends[0], backends[1], _images(arguments.input, arguments.limit),
                         prompts, fusion, arguments.fixed_threshold)
    _print_comparison(result, arguments.fixed_threshold, backends[1].precision)
    if arguments.out:
        _write_table(arguments.out, result.images)
        print(f'\n{arguments.out}')
    return 1 if result.flips or not result.decidable else 0


def _backend(variant: Variant, default_bundle: str) -> Backend:
    bundle: Bundle = load_bundle(find_bundle(variant.bundle or default_bundle))
    return backend_class(bundle.manifest.family)(
        bundle, kind_of(variant.engine, variant.precision, bundle))


def _describe(backend: Backend) -> str:
    return f'{backend.bundle.manifest.name} on {backend.kind.name} {backend.precision}'


def _images(path: Path, limit: int | None) -> Iterator[tuple[str, np.ndarray]]:
    return ((frame.name, image) for frame, image in read_inputs([path], limit))


def _print_comparison(result: Comparison, fixed_threshold: float, precision: str) -> None:
    print(f'\n{"image":24} {"cosine":>9} {"max |dp|":>9} {"p99 |dp|":>9} {"mean":>9} '
          f'{"t of A":>7} {"B - A":>8} {"flips":>6} {"IoU":>7} {"acc dyn":>8}')
    for image in result.images:
        decidable = [check for check in image.checks if check.decidable]
        print(f'{image.name[:24]:24} {image.cosine:9.6f} {image.max_dp:9.2e} '
              f'{image.p99_dp:9.2e} {image.mean_dp:9.2e} {image.threshold_a:7.3f} '
              f'{image.threshold_change:8.4f} {sum(check.flips for check in decidable):6} '
              f'{min((check.iou for check in decidable), default=math.nan):7.4f} '
              f'{image.dynamic.accuracy:8.5f}')
    images = result.images
    required = COSINE_REQUIRED.get(precision, COSINE_REQUIRED['fp16'])
    print(f'\nworst of {len(images)} images')
    print(f'  cosine of the logits, means off     {min(i.cosine for i in images):.6f} '
          f'(the gate wants {required:g})')
    print(f'  |dp| max, p99, mean                 {max(i.max_dp for i in images):.2e}, '
          f'{max(i.p99_dp for i in images):.2e}, {max(i.mean_dp for i in images):.2e}')
    print('  threshold, B - A                    '
          f'{max((i.threshold_change for i in images), key=abs):+.4f}')
    print(f'  pixels over {FLIP_MARGIN} that changed sides  {result.flips} in '
          f'{result.decidable} decidable masks of {len(images) * len(AREA_FRACTIONS)}')
    print(f'  mask IoU at the threshold of A      {result.mask_iou:.4f} '
          f'(the gate wants {IOU_REQUIRED:g} of trained models)')
    print("\nBlabberSeg's figures, all pixels        accuracy   recall unsafe, safe   "
          'IoU unsafe, safe')
    for name, judged in ((f'fixed threshold {fixed_threshold:g}', result.fixed),
                         ('dynamic threshold of each map', result.dynamic)):
        print(f'  {name:36}  {judged.accuracy:.6f}   {_pair(judged.recall)}    '
              f'{_pair(judged.iou)}')


def _pair(values: tuple[float, float]) -> str:
    return f'{values[0]:.6f}, {values[1]:.6f}'


def _print_layers(backends: Sequence[Backend], image: np.ndarray, prompts: PromptSet,
                  fusion: FusionOptions, tolerance: float) -> int:
    """Print, for each stage, the first node over the tolerance and the worst one."""
    from blabberseg_ros.parity.layers import Question, compare_nodes

    first, second = backends
    nodes = list(compare_nodes((first.bundle, first.kind), (second.bundle, second.kind),
                               Question(image, prompts, fusion)))
    found = 0
    for stage in first.stages:
        of_stage = [node for node in nodes if node.stage == stage]
        over = [node for node in of_stage if not node.error <= tolerance]
        if not of_stage:
            print(f'{stage:14} has no nodes that both engines show')
            continue
        worst = max(of_stage, key=lambda node: (math.isnan(node.error), node.error))
        what = (f'first over {tolerance:g}: {over[0].name} {list(over[0].shape)}, '
                f'{over[0].error:.2e}' if over else f'none over {tolerance:g}')
        print(f'{stage:14} {len(of_stage):4} nodes, {what}; worst: {worst.name}, '
              f'{worst.error:.2e}')
        found += bool(over)
    return 1 if found else 0


def _write_table(path: Path, images: Sequence[ImageComparison]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(['image', 'cosine', 'max_dp', 'p99_dp', 'mean_dp', 'threshold_a',
                     'threshold_b', 'threshold_change',
                     *(f'{name}_{fraction}' for fraction in AREA_FRACTIONS
                       for name in ('threshold', 'coverage', 'flips', 'iou')),
                     *(f'{name}_{kind}' for kind in ('fixed', 'dynamic') for name in (
                         'accuracy', 'recall_unsafe', 'recall_safe', 'iou_unsafe', 'iou_safe'))])
    for image in images:
        checks = [value for check in image.checks
                  for value in (check.threshold, check.coverage, check.flips, check.iou)]
        writer.writerow([image.name, image.cosine, image.max_dp, image.p99_dp, image.mean_dp,
                         image.threshold_a, image.threshold_b, image.threshold_change, *checks,
                         *_flat(image.fixed), *_flat(image.dynamic)])
    write_text(path, stream.getvalue())


def _flat(judged: Judged) -> tuple[float, ...]:
    return (judged.accuracy, *judged.recall, *judged.iou)
