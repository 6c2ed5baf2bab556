# SPDX-License-Identifier: Apache-2.0
"""A model on disk: a folder with a manifest, weights, graphs, a tokenizer and its licence.

- bundle.yaml: the manifest, with the SHA-256 of every other file
- weights.safetensors: each weight once; the graphs point into it as external data
- tokenizer.json: text to token ids
- *.onnx: one graph a stage
- vocabulary.txt: optional, the words that the text tower knows
- aliases.yaml: optional, other words for the labels of a family with a fixed list of them
- README.md: the model card
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blabberseg_ros.atomic import sha256_of, write_text
from blabberseg_ros.errors import BundleError
from blabberseg_ros.labels import read_aliases

FORMAT = 1
MANIFEST = 'bundle.yaml'
WEIGHTS = 'weights.safetensors'
TOKENIZER = 'tokenizer.json'
VOCABULARY = 'vocabulary.txt'
ALIASES = 'aliases.yaml'
CARD = 'README.md'
AUTO = 'auto'
_FIRST_FAMILY = 'clipseg'
# Notes may be corrected by hand; everything that computes is checked.
_UNCHECKED = (MANIFEST, CARD)


@dataclass(frozen=True)
class FileRecord:
    """SHA-256 (hexadecimal) and size in bytes of one file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    Attributes:
        family: back-end that runs it, for example `clipseg`.
        name: of the bundle.
        variant: of the family, for example `rd64-refined`.
        input_size_px: side of the square that images are resized to.
        architecture: sizes of the network, read by the family's configuration class.
        graphs: stage name to file name.
        source: where the weights come from, with checksums of the imported files.
        licence: of the weights.
        files: file name to record; filled in by `write_manifest`.
    """

    family: str
    name: str
    variant: str
    input_size_px: int
    architecture: dict[str, Any]
    graphs: dict[str, str]
    source: str
    licence: str
    files: dict[str, FileRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it lies.
        manifest: what it says about itself.
        vocabulary: words that the text tower was trained on, lower case; None when it knows the
            whole language.
        aliases: other words for the labels of a family that has a fixed list of them.
    """

    folder: Path
    manifest: Manifest
    vocabulary: frozenset[str] | None = None
    aliases: dict[str, tuple[str, ...]] | None = None

    @property
    def fingerprint(self) -> str:
        """Return a key for what decides a prompt's code, and what a network computes.

        These are weights, tokenizer, aliases, and the sizes and labels of the network: the same
        weights with their labels in another order are another model.
        """
        files = self.manifest.files
        sizes = json.dumps([self.manifest.family, self.manifest.architecture], sort_keys=True)
        return '-'.join([*(files[name].sha256[:16] for name in (WEIGHTS, TOKENIZER, ALIASES)
                           if name in files), hashlib.sha256(sizes.encode()).hexdigest()[:16]])

    def graph(self, stage: str) -> Path:
        """Return the path of a stage's ONNX graph.

        Raises:
            BundleError: the bundle has no such stage.
        """
        try:
            return self.folder / self.manifest.graphs[stage]
        except KeyError:
            raise BundleError(
                f'the bundle {self.folder} has no graph for the stage {stage!r}; it has '
                f'{", ".join(sorted(self.manifest.graphs))}. Import it again') from None


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Record every file of the folder and write `bundle.yaml`, last and atomically.

    Args:
        folder: holds the bundle's other files already.
        manifest: its `files` is replaced.

    Returns:
        The manifest as written.
    """
    import yaml

    files = {path.name: FileRecord(sha256_of(path), path.stat().st_size)
             for path in sorted(folder.iterdir())
             if path.is_file() and path.name not in _UNCHECKED and path.name[0] != '.'}
    complete = Manifest(**{**_shallow(manifest), 'files': files})
    content = {'format': FORMAT, **asdict(complete)}
    write_text(folder / MANIFEST, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return complete


def load_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle and check it.

    Args:
        folder: the bundle.
        verify: compare the SHA-256 of each file, not only its size.

    Raises:
        BundleError: it is missing, damaged or of a newer format.
    """
    manifest = _read_manifest(folder)
    for name, record in manifest.files.items():
        _check_file(folder / name, record, verify)
    for stage, name in manifest.graphs.items():
        if name not in manifest.files:
            raise BundleError(
                f'{folder / MANIFEST} names {name} for the stage {stage} but does not list it '
                'among its files; import the bundle again')
    vocabulary = None
    if VOCABULARY in manifest.files:
        vocabulary = frozenset((folder / VOCABULARY).read_text(encoding='utf-8').split())
    aliases = read_aliases(folder / ALIASES) if ALIASES in manifest.files else None
    return Bundle(folder, manifest, vocabulary, aliases)


def find_bundle(name_or_path: str | Path, family: str = AUTO) -> Path:
    """Return the folder of a bundle, given its path or the name of one that is installed.

    Names are looked up in the `engines` folder of each ROS prefix (AMENT_PREFIX_PATH), of this
    Python environment, of the source checkout, and in the user's own data folder.

    Args:
        name_or_path: of the bundle; `auto` for the demonstration bundle of a family.
        family: which one; CLIPSeg if that is `auto` as well.

    Raises:
        BundleError: there is none; the message lists the places and the bundles found.
    """
    if name_or_path == AUTO:
        name_or_path = f'{_FIRST_FAMILY if family == AUTO else family}_demo'
    path = Path(name_or_path).expanduser()
    if (path / MANIFEST).is_file():
        return path.resolve()
    candidates = [place / path for place in _bundle_places() if len(path.parts) == 1]
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate.resolve()
    known = [folder.name for folder in installed_bundles()]
    places = ', '.join(str(place) for place in _bundle_places())
    raise BundleError(
        f'there is no bundle {str(name_or_path)!r}. Give the path of a folder that holds a '
        f'{MANIFEST}, or one of these names: {", ".join(known) or "(none found)"}. Looked in: '
        f'{places}. `blabberseg import --help` tells how to make one')


def installed_bundles() -> list[Path]:
    """Return the folders of all bundles that can be given by name, the first of each name."""
    found: dict[str, Path] = {}
    for place in _bundle_places():
        for manifest in sorted(place.glob(f'*/{MANIFEST}')):
            found.setdefault(manifest.parent.name, manifest.parent)
    return [found[name] for name in sorted(found)]


def user_bundle_folder() -> Path:
    """Return the folder where a user's imported bundles are kept."""
    data = os.environ.get('XDG_DATA_HOME') or '~/.local/share'
    return Path(data).expanduser() / 'blabberseg_ros' / 'engines'


def user_cache_folder() -> Path:
    """Return the folder for what can be computed again: prompt codes and engine plans."""
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(cache).expanduser() / 'blabberseg_ros'


def _bundle_places() -> list[Path]:
    prefixes = [prefix for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
                if prefix]
    places = [Path(prefix) / 'share' / 'blabberseg_ros' / 'engines'
              for prefix in (*prefixes, sys.prefix)]
    places += [Path(__file__).resolve().parent.parent / 'engines', user_bundle_folder()]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _read_manifest(folder: Path) -> Manifest:
    import yaml

    path = folder / MANIFEST
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        if not isinstance(content, dict) or content.pop('format', None) != FORMAT:
            raise BundleError(
                f'{path} is not a bundle manifest of format {FORMAT}; import the bundle again '
                'with this version')
        files = {name: FileRecord(**record) for name, record in content.pop('files').items()}
        if any(Path(name).name != name for name in (*files, *content['graphs'].values())):
            raise BundleError(f'{path} names files outside its folder; do not use this bundle')
        return Manifest(**content, files=files)
    except OSError as error:
        raise BundleError(f'the bundle manifest {path} cannot be read: {error}') from error
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f'the bundle manifest {path} is damaged ({error}); import the bundle again') from error


def _check_file(path: Path, record: FileRecord, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise BundleError(
            f'{path} is missing from its bundle; copy it again or import the bundle '
            'again') from None
    if size != record.bytes or (verify and sha256_of(path) != record.sha256):
        raise BundleError(
            f'{path} is damaged: it has {size} bytes and is not the file that the manifest '
            f'recorded ({record.bytes} bytes, SHA-256 {record.sha256[:16]}…). Copy it again or '
            'import the bundle again')


def _shallow(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
