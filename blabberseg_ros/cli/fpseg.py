# SPDX-License-Identifier: Apache-2.0
"""`blabberseg fpseg TOOL`: embeddings, tuning, distillation, evaluation, benchmark, export."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from blabberseg_ros.errors import ParameterError

Settings = TypeVar('Settings')


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'fpseg',
        description='Each tool reads one YAML file; its keys are told in the file of that name in '
                    'config/.')
    tools = parser.add_subparsers(metavar='TOOL', required=True)
    for name, (run, brief, description) in _TOOLS.items():
        tool = tools.add_parser(name, help=brief, description=description)
        tool.add_argument('--config', type=Path, metavar='FILE',
                          help=f'YAML file (default: config/fpseg_{name}.yaml)')
        tool.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                          help='replaces a key of the file; may be given several times')
        tool.set_defaults(run=run, tool=name)


def _read(kind: type[Settings], arguments: argparse.Namespace) -> Settings:
    from blabberseg_ros.fpseg_tools.settings import read_settings

    return read_settings(kind, arguments.config or _default_config(arguments.tool), arguments.set)


def _default_config(tool: str) -> Path:
    """Return the configuration that comes with the package, in the source or installed.

    Raises:
        ParameterError: it was not installed.
    """
    name = f'fpseg_{tool}.yaml'
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    places = [Path(__file__).resolve().parent.parent.parent / 'config',
              *(Path(prefix) / 'share' / 'blabberseg_ros' / 'config' for prefix in prefixes
                if prefix)]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ParameterError(f'{name} is not installed; give a file by --config')


def _worlds(arguments: argparse.Namespace) -> int:
    from blabberseg_ros.fpseg_tools.world_set import WorldSetSettings, write_world_set

    settings = _read(WorldSetSettings, arguments)
    print(f'{write_world_set(settings)} frames: {settings.data_root}')
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    _require_torch()
    from blabberseg_ros.fpseg_tools.embed import EmbedSettings, embed

    settings = _read(EmbedSettings, arguments)
    for split, count in embed(settings).items():
        print(f'{split}: {count} frames embedded now: {settings.embeddings / split}')
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    _require_torch()
    from blabberseg_ros.fpseg_tools.tune import TuneSettings, tune

    settings = _read(TuneSettings, arguments)
    _report(tune(settings), settings.best_by, settings.out)
    return 0


def _distil(arguments: argparse.Namespace) -> int:
    _require_torch()
    from blabberseg_ros.fpseg_tools.distil import DistilSettings, distil

    settings = _read(DistilSettings, arguments)
    _report(distil(settings), 'mse', settings.out)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    _require_torch()
    from blabberseg_ros.fpseg_tools.classes import read_classes
    from blabberseg_ros.fpseg_tools.evaluate import EvaluateSettings, evaluate

    settings = _read(EvaluateSettings, arguments)
    figures, classes = evaluate(settings), read_classes(settings.classes)
    semantic = dict(zip(classes.exclusive, figures.semantic_iou, strict=True))
    print(f'{"class":20} {"IoU":>7} {"in the map":>11}')
    for name, value in zip(classes.names, figures.class_iou, strict=True):
        print(f'{name:20} {value:7.4f} ' + (f'{semantic[name]:11.4f}' if name in semantic else ''))
    print(f'mIoU {figures.miou:.4f}, semantic mIoU {figures.semantic_miou:.4f}, pooled IoU '
          f'{figures.pooled_iou:.4f}, loss {figures.loss:.4f}: {settings.out / "figures.json"}')
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    _require_torch()
    from blabberseg_ros.fpseg_tools.bench import BenchSettings, bench

    settings = _read(BenchSettings, arguments)
    rows = bench(settings)
    print(f'{"engine":12} {"":5} {"scenario":26} {"classes":>7} {"tokens":>6} {"p50 ms":>10} '
          f'{"p99 ms":>10} {"ms/class":>9} {"x upstream":>10}')
    for row in rows:
        extra = (f'{"" if value is None else value:>{width}}' for value, width in (
            (row.per_class_ms, 9), (row.ratio_to_upstream, 10)))
        print(f'{row.engine:12} {row.precision:5} {row.scenario:26} {row.n_classes:7} '
              f'{row.prompt_size:6} {row.p50_ms:10.3f} {row.p99_ms:10.3f} {" ".join(extra)}')
    print(settings.out)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    _require_torch()
    from blabberseg_ros.fpseg_tools.export import ExportSettings, export

    settings = _read(ExportSettings, arguments)
    manifest = export(settings)
    print(f'{settings.out}: FPSeg {manifest.variant}, {manifest.input_size_px} px')
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from blabberseg_ros.cli import build
    from blabberseg_ros.fpseg_tools.build import BuildSettings

    parser = argparse.ArgumentParser(prog='blabberseg fpseg')
    build.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(['build', *_read(BuildSettings, arguments).arguments])
    return parsed.run(parsed)


def _report(outcome: Any, figure: str, out: Path) -> None:
    start = '' if outcome.start is None else f'{outcome.start:.4f} before the first update, '
    print(f'{figure}: {start}best {outcome.best:.4f} after {outcome.best_step} of '
          f'{outcome.steps} updates: {out / "best.safetensors"}')


def _require_torch() -> None:
    from blabberseg_ros.cli.import_bundle import require_torch

    require_torch()


# Name of a tool: what runs it, its line in the list, its own help.
_TOOLS: dict[str, tuple[Callable[[argparse.Namespace], int], str, str]] = {
    'worlds': (_worlds, 'make a data set from the procedural world',
               'Writes pictures, label maps and a list of classes in the layout of Cityscapes.'),
    'embed': (_embed, 'compute the embeddings of a data set',
              'Writes the embeddings as shards that are whole or absent. A run that was stopped, '
              'however hard, goes on where it was.'),
    'tune': (_tune, 'tune class prompts on embeddings',
             'Writes OUT/best.safetensors (network), OUT/best_prompts.safetensors (its classes '
             'alone), OUT/log.jsonl and OUT/state.safetensors. A run that was stopped goes on to '
             'the same result.'),
    'distil': (_distil, 'teach an encoder the embeddings of a larger one',
               'Writes OUT/best.safetensors, OUT/log.jsonl and OUT/state.safetensors. A run that '
               'was stopped goes on to the same result. Tune the prompts anew afterwards.'),
    'evaluate': (_evaluate, 'judge a network on a labelled split',
                 'Prints IoU of each class, mIoU, mIoU of the semantic map, and the pooled IoU '
                 'of the FPSeg repository; writes them to OUT/figures.json.'),
    'bench': (_bench, 'measure speed over classes and prompt sizes',
              'Measures every engine that can be used here, and in the same run the way of the '
              'FPSeg repository, with random weights; writes a CSV.'),
    'export': (_export, 'write a network as a bundle with ONNX graphs',
               'Writes encoder and decoder apart; the classes are inputs of the decoder.'),
    'build': (_build, 'build the TensorRT plans of a bundle', 'Runs `blabberseg build`.'),
}
