# SPDX-License-Identifier: Apache-2.0
"""What the importers of all families share.

The importer of a family is the module `models.import_FAMILY` with

    TAKES                         what it reads, in a few words
    recognises(source)            whether a source looks like the family's
    import_model(path, options)   the network, strict on every key

`models.sources` tells where its weights are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.checkpoints import read_json, read_state

if TYPE_CHECKING:
    from torch import nn

FPSEG_OPTIONS = ('prompt_size', 'attention_bias', 'fit')
_SETTINGS = ('config.json', 'preprocessor_config.json')
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


@dataclass(frozen=True)
class Source:
    """What a look at a file or folder tells, before anything is checked.

    Attributes:
        path: of the file or folder.
        model_type: of a Hugging Face folder; None for anything else.
        keys: names of the tensors in a checkpoint file; empty if it cannot be read as one.
        problem: why not.
    """

    path: Path
    model_type: str | None = None
    keys: frozenset[str] = frozenset()
    problem: str = ''

    @classmethod
    def look(cls, path: Path) -> 'Source':
        """Look at a file or folder.

        Raises:
            BundleError: a folder without a readable config.json.
        """
        if path.is_dir():
            if not (path / 'config.json').is_file():
                raise BundleError(f'{path} has no config.json, so it is not a folder of the '
                                  'Hugging Face hub; give the folder that has it, or a file')
            return cls(path, str(read_json(path / 'config.json').get('model_type')))
        try:
            return cls(path, keys=frozenset(read_state(path, ignore_objects=True)))
        except BundleError as error:
            return cls(path, problem=str(error))


@dataclass(frozen=True)
class ImportOptions:
    """What a user may say about an import.

    Attributes:
        input_size_px: side of the square input; None takes the family's usual one.
        clip: a CLIP checkpoint, or `openai`, where the source lacks it.
        classes: file with the names of the classes, where the source lacks them.
        aliases: file with other words for the labels.
        prompt_size: tokens a class, for FPSeg's untuned ones.
        attention_bias: `live` or `zero`, for FPSeg (see `FpSegConfig`).
        fit: `squash` or `letterbox`, for FPSeg.
    """

    input_size_px: int | None = None
    clip: str | None = None
    classes: Path | None = None
    aliases: Path | None = None
    prompt_size: int | None = None
    attention_bias: str | None = None
    fit: str | None = None

    def refuse(self, title: str, *names: str) -> None:
        """Refuse options that a family has no use for.

        Raises:
            BundleError: one of them was given.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise BundleError(f'--{name.replace("_", "-")} says nothing about {title}; leave '
                                  'it out')


@dataclass(frozen=True)
class Imported:
    """A network read from a checkpoint.

    Attributes:
        model: float32, in evaluation mode, with a `config`.
        source: the files that it was read from, with their SHA-256.
        licence: what is known about the licence of the weights.
        reads_text: whether the bundle needs CLIP's tokenizer.
        aliases: other words for the labels, if the family has a fixed list of them.
    """

    model: 'nn.Module'
    source: str
    licence: str
    reads_text: bool = True
    aliases: dict[str, tuple[str, ...]] | None = None


def hugging_face_weights(folder: Path) -> Path:
    """Return the weights file of a Hugging Face folder.

    Raises:
        BundleError: there is none.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BundleError(f'{folder} has a config.json but no weights; put {" or ".join(_WEIGHTS)} '
                      'next to it')


def some(names: Iterable[str], limit: int = 6) -> str:
    """Return the first few names as a text, and how many more there are."""
    listed = list(names)
    if not listed:
        return 'nothing'
    more = f' and {len(listed) - limit} more' if len(listed) > limit else ''
    return ', '.join(listed[:limit]) + more


def download(hub_id: str, revision: str | None = None) -> Path:
    """Return the local folder of a hub repository, downloaded unless it is in the cache.

    Raises:
        BundleError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        # A repository may hold the weights several times; one is enough.
        for weights in _WEIGHTS:
            folder = Path(snapshot_download(hub_id, revision=revision,
                                            allow_patterns=[*_SETTINGS, weights]))
            if (folder / weights).is_file():
                break
        return folder
    except Exception as error:  # its HTTP library's errors share no base with its own
        raise BundleError(
            f'{hub_id} cannot be had from the Hugging Face hub: {error}. Without a network, '
            'download its files elsewhere and give their folder') from error
