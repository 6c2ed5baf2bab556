# SPDX-License-Identifier: Apache-2.0
"""`blabberseg import`: make a bundle from published CLIPSeg weights."""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

from blabberseg_ros.bundle import MANIFEST, user_bundle_folder
from blabberseg_ros.errors import BundleError

_DESCRIPTION = """\
Makes a bundle (a folder with weights, graphs, tokenizer and manifest) from published CLIPSeg
weights. SOURCE is one of

  a folder      of Hugging Face: config.json with model.safetensors or pytorch_model.bin
  a hub id      such as CIDAS/clipseg-rd64-refined, downloaded if it is not in the cache
  a .pth file   of the authors: rd64-uni-refined.pth, rd64-uni.pth, rd16-uni.pth; it holds the
                decoder alone, so --clip has to say where OpenAI's CLIP ViT-B/16 is

The variant is found from the file. A local path never touches the network.
"""
_SOURCES = """\
where to get the weights

  https://huggingface.co/CIDAS/clipseg-rd64-refined          best masks, whole model, 603 MB
      model.safetensors  SHA-256 d00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55
  https://github.com/timojl/clipseg (weights/, by Git LFS)   decoders, 1 to 5 MB
      rd64-uni-refined.pth  SHA-1 8a3824a4f447096af25a00f9ac80b50e13cace63
      rd64-uni.pth  SHA-256 13845f6cee4d54ca46f62ee19dd354822094a26e0efccc64e606be93d6a7e26f
      rd16-uni.pth  SHA-256 61545cdb3a28f99d33d457c64a9721ade835a9dfbda604c459de6831c504167a
  OpenAI's CLIP ViT-B/16, 351 MB (other trainings of the same shape do not fit the decoders)
      https://openaipublic.azureedge.net/clip/models/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt
      ViT-B-16.pt  SHA-256 5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f

licences

  CLIPSeg's weights: the hub page is tagged apache-2.0, while the authors say that their licence
  covers the code alone and the weights are released for research purposes (timojl/clipseg,
  issue 35). Ask them before any other use. CLIP: MIT (openai/CLIP).
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'import', help='make a bundle from published CLIPSeg weights', description=_DESCRIPTION,
        epilog=_SOURCES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='folder, hub id or .pth file')
    parser.add_argument('--clip', metavar='FILE',
                        help="CLIP ViT-B/16 for a .pth file: a checkpoint, or the word 'openai' "
                             'to let open_clip download it')
    parser.add_argument('--out', type=Path, metavar='FOLDER',
                        help=f'the bundle (default: {user_bundle_folder()}/NAME)')
    parser.add_argument('--name', help='of the bundle (default: clipseg-VARIANT)')
    parser.add_argument('--input-size', type=int, default=352, metavar='PX',
                        help='side of the square that images are resized to, a multiple of 16 '
                             '(default: %(default)s)')
    parser.add_argument('--storage', choices=('fp32', 'fp16'), default='fp32',
                        help='fp16 halves the file; graphs compute in fp32 either way '
                             '(default: %(default)s)')
    parser.add_argument('--revision', help='of the hub repository')
    parser.add_argument('--licence', help='of the weights, if you know it better')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Import, export and say where the bundle is."""
    require_torch()
    from blabberseg_ros.models import import_clipseg
    from blabberseg_ros.models.clipseg_config import check_input_size
    from blabberseg_ros.models.export_clipseg import export_bundle

    check_input_size(arguments.input_size)
    source, size_px = arguments.source, arguments.input_size
    path = Path(source).expanduser()
    if path.is_dir():
        imported = import_clipseg.import_hugging_face(path, size_px)
    elif path.is_file():
        imported = import_clipseg.import_original(path, arguments.clip, size_px)
    elif is_hub_id(source):
        imported = import_clipseg.import_hub(source, size_px, arguments.revision)
    else:
        raise BundleError(f'there is no file or folder {source}, and it is not a hub id such as '
                          f'{import_clipseg.HUB_ID}')
    name = arguments.name or f'clipseg-{imported.model.config.variant}'
    folder = arguments.out or user_bundle_folder() / name
    check_is_ours(folder)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = write_clip_tokenizer(Path(scratch))
        export_bundle(imported.model, folder, name=name, source=imported.source,
                      licence=arguments.licence or imported.licence, tokenizer_json=tokenizer,
                      storage=arguments.storage)
    print(f'{folder}: CLIPSeg {imported.model.config.variant}, {size_px} px\n'
          f'source: {imported.source}\nlicence: {arguments.licence or imported.licence}')
    return 0


def is_hub_id(source: str) -> bool:
    """Return whether a source is written like `owner/name`, not like a path."""
    owner, _, name = source.partition('/')
    return bool(owner.strip('.~') and name) and '/' not in name and not name.endswith('.pth')


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
