# SPDX-License-Identifier: Apache-2.0
"""`blabberseg label`: which of your labels, or of all words, each pixel is."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import user_cache_folder
from blabberseg_ros.cli.lseg_options import add_lseg_options, input_size, open_lseg
from blabberseg_ros.cli.pictures import read_inputs, write_png
from blabberseg_ros.errors import PromptError
from blabberseg_ros.label_picture import shares, side_by_side

_LABELS = 'dog, grass, other'
Labeller = Callable[[np.ndarray], np.ndarray]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'label',
        description='Writes NAME_labels.png for each image, the image beside its coloured copy '
                    'with a legend, and prints what was found. Without prompts (--word-free) '
                    'every word of the vocabulary is tried: of a model that was trained on few '
                    "words those, else CLIP's 49 thousand, which are encoded once and kept.")
    parser.add_argument('input', nargs='+', type=Path, metavar='IMAGE|VIDEO|FOLDER')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--labels', default=_LABELS, metavar='TEXT',
                       help='separated by commas, taken as they are, without a template '
                            '(default: %(default)s)')
    which.add_argument('--word-free', action='store_true',
                       help='try every word that the model was trained on')
    which.add_argument('--all-words', action='store_true',
                       help="try every word of CLIP's vocabulary, whatever the model was trained "
                            'on')
    parser.add_argument('--most', type=int, default=12, metavar='N',
                        help='labels to print and to colour, by area (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('labels'), metavar='FOLDER',
                        help='where to write (default: %(default)s)')
    add_lseg_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Label everything, print and draw."""
    segmenter, backend = open_lseg(arguments)
    try:
        size = input_size(arguments, backend)
        if arguments.word_free or arguments.all_words:
            names, labeller = _by_words(backend, size, arguments.all_words)
        else:
            names, labeller = _by_labels(backend, size, labels_of(arguments.labels))
        for frame, image in read_inputs(arguments.input):
            labels = labeller(image)
            found = shares(labels)
            print(f'{frame.name}: ' + ', '.join(
                f'{names[index]} {share:.1%}' for index, share in found[:arguments.most])
                + (f' and {len(found) - arguments.most} more'
                   if len(found) > arguments.most else ''))
            write_png(arguments.out / f'{frame.stem}_labels.png',
                      side_by_side(image, labels, names, arguments.most))
    finally:
        segmenter.deactivate()
    print(arguments.out)
    return 0


def labels_of(text: str) -> tuple[str, ...]:
    """Return the labels of a list with commas.

    Raises:
        PromptError: there are none.
    """
    labels = tuple(dict.fromkeys(label.strip() for label in text.split(',') if label.strip()))
    if not labels:
        raise PromptError(f'{text!r} holds no label; give them as "{_LABELS}"')
    return labels


def _by_labels(backend: LSegBackend, size: tuple[int, int],
               labels: tuple[str, ...]) -> tuple[Sequence[str], Labeller]:
    codes = backend.encode_prompts(labels)

    def label(image: np.ndarray) -> np.ndarray:
        logits = backend.decode(backend.encode_image_at(image, *size), codes)
        return backend.to_host(logits).argmax(axis=0)

    return labels, label


def _by_words(backend: LSegBackend, size: tuple[int, int],
              every: bool) -> tuple[Sequence[str], Labeller]:
    from tqdm import tqdm

    from blabberseg_ros.words import best_words, word_vectors, words_of_model

    words = words_of_model(backend, every)
    with tqdm(total=len(words), unit='word', desc='words') as progress:
        vectors = word_vectors(backend, words, user_cache_folder(), progress.update)

    def label(image: np.ndarray) -> np.ndarray:
        features = backend.features(backend.encode_image_at(image, *size))
        return best_words(features, vectors)[0]

    return words, label
