# SPDX-License-Identifier: Apache-2.0
"""`blabberseg features`: a vector for every second pixel, for those who fuse them into maps."""

import argparse
from pathlib import Path

import numpy as np

from blabberseg_ros.atomic import write_atomically
from blabberseg_ros.cli.lseg_options import add_lseg_options, input_size, open_lseg
from blabberseg_ros.cli.pictures import read_inputs


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'features',
        description="Writes NAME.npy for each image: [D, H/2, W/2] unit vectors in the space of "
                    "the model's text tower (D is 512 for published models), at half of the "
                    'size that the image was stretched to.')
    parser.add_argument('input', nargs='+', type=Path, metavar='IMAGE|VIDEO|FOLDER')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where to write')
    parser.add_argument('--dtype', choices=('float16', 'float32'), default='float16',
                        help='of the file; float16 halves it and is good to 0.0005 (default: '
                             '%(default)s)')
    add_lseg_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the features of everything."""
    from tqdm import tqdm

    segmenter, backend = open_lseg(arguments)
    try:
        count, size = 0, input_size(arguments, backend)
        for frame, image in tqdm(read_inputs(arguments.input), unit='image',
                                 desc=segmenter.engine_name):
            features = backend.features(backend.encode_image_at(image, *size))
            _save(arguments.out / f'{frame.stem}.npy', features.astype(arguments.dtype))
            count += 1
    finally:
        segmenter.deactivate()
    print(f'{count} files of {arguments.dtype} {list(features.shape)}: {arguments.out}')
    return 0


def _save(path: Path, features: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, 'wb') as stream:
            np.save(stream, features, allow_pickle=False)

    write_atomically(path, write)
