# SPDX-License-Identifier: Apache-2.0
"""`blabberseg import`: make a bundle from published weights."""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from blabberseg_ros.bundle import AUTO, MANIFEST, user_bundle_folder
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.sources import SOURCES

_DESCRIPTION = """\
Makes a bundle (a folder with weights, graphs and manifest) from published weights. SOURCE is

  a folder      of Hugging Face: config.json with model.safetensors or pytorch_model.bin
  a hub id      such as CIDAS/clipseg-rd64-refined, downloaded if it is not in the cache
  a file        a checkpoint of the authors, .pth, .pt, .ckpt or .safetensors

The family and the variant are found from the source. A local path never touches the network.
"""
_SOURCES_TEXT = '\n'.join(SOURCES.values())


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'import', description=_DESCRIPTION, epilog=f'Where to get weights:\n\n{_SOURCES_TEXT}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='folder, hub id or file')
    parser.add_argument('--sources', action=_Sources,
                        help='tell where to get weights, as below, and stop')
    parser.add_argument('--backend', choices=(AUTO, *SOURCES), default=AUTO,
                        help='model family (default: found from the source)')
    parser.add_argument('--clip', metavar='FILE',
                        help='CLIP checkpoint where the source lacks it (CLIPSeg: ViT-B/16 for a '
                             ".pth file); the word 'openai' lets open_clip download it")
    parser.add_argument('--classes', type=Path, metavar='FILE',
                        help='names of the classes, one a line, where the source lacks them')
    parser.add_argument('--aliases', type=Path, metavar='FILE',
                        help='YAML file with other words for the labels: a word, and the labels '
                             'that it stands for')
    parser.add_argument('--prompt-size', type=int, metavar='TOKENS',
                        help='tokens a class of FPSeg, where the source has no classes '
                             '(default: 64)')
    parser.add_argument('--attention-bias', choices=('live', 'zero'),
                        help="whether MobileSAM's encoder uses its attention biases; FPSeg's "
                             'published classes were tuned without (default: zero for those, '
                             'else live)')
    parser.add_argument('--fit', choices=('squash', 'letterbox'),
                        help='FPSeg: stretch images to the square, or keep their proportions and '
                             'pad (default: squash)')
    parser.add_argument('--out', type=Path, metavar='FOLDER',
                        help=f'the bundle (default: {user_bundle_folder()}/NAME)')
    parser.add_argument('--name', help='of the bundle (default: FAMILY-VARIANT)')
    parser.add_argument('--input-size', type=int, metavar='PX',
                        help='side of the square that images are resized to (default: the '
                             "family's usual one)")
    parser.add_argument('--storage', choices=('fp32', 'fp16'), default='fp32',
                        help='fp16 halves the file; graphs compute in fp32 either way '
                             '(default: %(default)s)')
    parser.add_argument('--revision', help='of the hub repository')
    parser.add_argument('--licence', help='of the weights, if you know it better')
    parser.set_defaults(run=run)


class _Sources(argparse.Action):
    """Print where the weights of every family are to be had."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(_SOURCES_TEXT, end='')
        parser.exit()


def run(arguments: argparse.Namespace) -> int:
    """Import, export and say where the bundle is."""
    require_torch()
    from blabberseg_ros.models.export import export_bundle
    from blabberseg_ros.models.families import network_config
    from blabberseg_ros.models.importing import ImportOptions, download

    path, note = Path(arguments.source).expanduser(), ''
    if not path.exists():
        if not is_hub_id(arguments.source):
            raise BundleError(f'there is no file or folder {arguments.source}, and it is not a '
                              'hub id such as CIDAS/clipseg-rd64-refined')
        path = download(arguments.source, arguments.revision)
        note = f'{arguments.source} on the Hugging Face hub: '
    imported = choose_importer(path, arguments.backend).import_model(path, ImportOptions(
        arguments.input_size, arguments.clip, arguments.classes, arguments.aliases,
        arguments.prompt_size, arguments.attention_bias, arguments.fit))
    config = network_config(imported.model)
    name = arguments.name or f'{config.family}-{config.variant}'
    folder = arguments.out or user_bundle_folder() / name
    check_is_ours(folder)
    source, licence = note + imported.source, arguments.licence or imported.licence
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = write_clip_tokenizer(Path(scratch)) if imported.reads_text else None
        export_bundle(imported.model, folder, name=name, source=source, licence=licence,
                      tokenizer_json=tokenizer, storage=arguments.storage,
                      aliases=imported.aliases)
    print(f'{folder}: {config.title} {config.variant}, {config.input_size_px} px\n'
          f'source: {source}\nlicence: {licence}')
    return 0


def choose_importer(path: Path, family: str = AUTO) -> ModuleType:
    """Return the importer of a file or folder.

    Args:
        path: of the weights.
        family: the only one wanted, or `auto` to ask each.

    Raises:
        BundleError: no family recognises it; the message says what each takes.
    """
    from blabberseg_ros.models.families import importer
    from blabberseg_ros.models.importing import Source

    if family != AUTO:
        return importer(family)
    source = Source.look(path)
    importers = {name: importer(name) for name in SOURCES}
    for module in importers.values():
        if module.recognises(source):
            return module
    what = (f'is a folder of the family {source.model_type!r}' if source.model_type is not None
            else source.problem or 'is not a checkpoint of a known family')
    takes = '; '.join(f'{name}: {module.TAKES}' for name, module in importers.items())
    raise BundleError(f'{path}: {what}. What works: {takes}')


def is_hub_id(source: str) -> bool:
    """Return whether a source is written like `owner/name`, not like a path."""
    owner, _, name = source.partition('/')
    return (bool(owner.strip('.~') and name) and '/' not in name
            and not name.endswith(('.pth', '.pt', '.ckpt', '.bin', '.safetensors')))


def check_is_ours(folder: Path) -> None:
    """Refuse to write among files that are not those of a bundle.

    Raises:
        BundleError: the folder holds something else.
    """
    if folder.exists() and not (folder.is_dir() and (
            (folder / MANIFEST).is_file() or not any(folder.iterdir()))):
        raise BundleError(f'{folder} exists and is not a bundle; give another folder by --out')


def require_torch() -> None:
    """Refuse politely where the extra packages are not installed.

    Raises:
        BundleError: naming what to install.
    """
    missing = [name for name in ('torch', 'open_clip', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise BundleError(f'this command needs {", ".join(missing)}; install them with '
                          "`pip install 'blabberseg_ros[torch]'`")


def write_clip_tokenizer(folder: Path) -> Path:
    """Write `tokenizer.json` from the merges file that open_clip installs; return its path."""
    from open_clip.tokenizer import default_bpe

    from blabberseg_ros.text import write_tokenizer_json

    path = folder / 'tokenizer.json'
    write_tokenizer_json(default_bpe(), path)
    return path
