# SPDX-License-Identifier: Apache-2.0
"""What `blabberseg segment` writes for an image, a folder and a video, and under which names."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest

from blabberseg_ros.cli import segment
from blabberseg_ros.cli.main import main
from blabberseg_ros.cli.pictures import open_inputs
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.random_segformer import SMALL, random_segformer
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.prompts import default_prompts
from blabberseg_ros.segmenter import Segmenter
from blabberseg_ros.viz import overlay

SIZE_PX = (96, 64)
FRAMES = moving_frames(3, SIZE_PX)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep the user's cache out of the tests."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture
def run(random_bundle, tmp_path):
    """Return a function that segments a path and returns the exit code and the table's rows."""
    def segmented(path, *options):
        code = main(['segment', str(path), '--bundle', str(random_bundle), '--engine',
                     'onnxruntime-cpu', '--out', str(tmp_path / 'out'), *options])
        with open(tmp_path / 'out' / 'heatmaps.csv', newline='', encoding='utf-8') as stream:
            return code, list(csv.DictReader(stream))

    return segmented


def expected(bundle, images):
    """Return the heatmaps that the core gives."""
    with Segmenter.open(bundle, engine='onnxruntime-cpu', check_parity=False) as segmenter:
        return [segmenter.segment(image, default_prompts(), FusionOptions(min_threshold=0.3))
                for image in images]


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def write_video(path, count=4):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 10.0, SIZE_PX)
    assert writer.isOpened()
    for image in moving_frames(count, SIZE_PX):
        writer.write(image[..., ::-1])
    writer.release()
    return path


def test_an_image(run, random_bundle, tmp_path):
    code, rows = run(write(tmp_path / 'a.png', FRAMES[0]))
    heatmap, = expected(random_bundle, FRAMES[:1])
    np.testing.assert_array_equal(read(tmp_path / 'out' / 'a_mask.png'), heatmap.mask)
    np.testing.assert_array_equal(read(tmp_path / 'out' / 'a_overlay.png')[..., ::-1],
                                  overlay(FRAMES[0], heatmap.mask))
    assert code == 0
    assert [(row['frame'], row['success'], row['threshold'], row['safe_fraction'])
            for row in rows] == [('a.png', str(heatmap.success), f'{heatmap.threshold:.4f}',
                                  f'{(heatmap.mask > 0).mean():.4f}')]
    assert float(rows[0]['total_ms']) > 0


def test_a_folder_with_an_unreadable_file_and_one_stem_twice(run, random_bundle, tmp_path, capsys):
    for name, image in zip(('x.bmp', 'x.png', 'x_2.png'), FRAMES, strict=True):
        write(tmp_path / 'in' / name, image)
    (tmp_path / 'in' / 'broken.png').write_bytes(b'no picture')
    code, rows = run(tmp_path / 'in')
    assert code == 1
    assert 'broken.png: the file is not an image' in capsys.readouterr().out
    assert [row['frame'] for row in rows] == [
        'broken.png', 'x.bmp', 'x.png (x_2)', 'x_2.png (x_2_2)']
    assert rows[0]['success'] == 'False'
    masks = {path.name for path in (tmp_path / 'out').glob('*_mask.png')}
    assert masks == {'x_mask.png', 'x_2_mask.png', 'x_2_2_mask.png'}
    for stem, heatmap in zip(('x', 'x_2', 'x_2_2'), expected(random_bundle, FRAMES), strict=True):
        np.testing.assert_array_equal(read(tmp_path / 'out' / f'{stem}_mask.png'), heatmap.mask)


def test_a_video_with_a_dot_in_its_name(run, random_bundle, tmp_path):
    path = write_video(tmp_path / 'flight.2024.mp4')
    code, rows = run(path)
    stems = [f'flight.2024_{index:06d}' for index in range(4)]
    assert code == 0
    assert [row['frame'] for row in rows] == stems
    images = [frame.image for frame in open_inputs([path])[1]]
    heatmaps = expected(random_bundle, images)
    for stem, heatmap in zip(stems, heatmaps, strict=True):
        np.testing.assert_array_equal(read(tmp_path / 'out' / f'{stem}_mask.png'), heatmap.mask)
    assert not list((tmp_path / 'out').glob('*_overlay.png'))
    shown = [frame.image for frame in open_inputs([tmp_path / 'out' /
                                                   'flight.2024_overlay.mp4'])[1]]
    assert len(shown) == 4
    for picture, image, heatmap in zip(shown, images, heatmaps, strict=True):
        # MPEG-4 keeps the gist of such small noisy pictures.
        assert np.abs(picture.astype(int) - overlay(image, heatmap.mask)).mean() < 12


def test_a_video_that_cannot_be_written_is_refused(random_bundle, tmp_path, monkeypatch, capsys):
    path = write_video(tmp_path / 'a.mp4', 1)
    monkeypatch.setattr(segment.cv2.VideoWriter, 'fourcc', lambda *_: 0)
    assert main(['segment', str(path), '--bundle', str(random_bundle), '--engine',
                 'onnxruntime-cpu', '--out', str(tmp_path / 'out')]) == 2
    assert 'no MPEG-4 encoder' in capsys.readouterr().err
    assert not list((tmp_path / 'out').glob('*.mp4'))


def test_labels_are_written_where_the_default_prompts_say_nothing(tmp_path, capsys):
    model = random_segformer(replace(SMALL, labels=tuple(f'zone {i}' for i in range(
        len(SMALL.labels))), text_layers=0))
    export_bundle(model, tmp_path / 'zones', name='zones', source='random', licence='none')
    for index, image in enumerate(FRAMES[:2]):
        write(tmp_path / f'{index}.png', image)
    command = ['segment', '--bundle', str(tmp_path / 'zones'), '--engine', 'onnxruntime-cpu',
               '--out', str(tmp_path / 'out'), str(tmp_path)]
    assert main([*command, '--timings']) == 0
    printed = capsys.readouterr().out
    assert 'Note: no masks, since the default prompts say nothing to this model: ' in printed
    assert '2 frames, labels alone, 0 failed' in printed
    assert 'onnxruntime-cpu fp32, 0.png, 96x64' in printed, 'timings of the first frame'
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        '0_labels.png', '1_labels.png', 'heatmaps.csv'}
    table = (tmp_path / 'out' / 'heatmaps.csv').read_text()
    assert table.splitlines()[1:] == ['0.png,,,,,labels alone', '1.png,,,,,labels alone']
    assert main([*command, '--positive', 'grass', '--negative', 'zone 1']) == 2
    assert 'grass' in capsys.readouterr().err


def test_stems_are_given_once_over_all_inputs(tmp_path):
    paths = [write(tmp_path / folder / name, FRAMES[0])
             for folder, name in (('one', 'x.png'), ('two', 'x.png'), ('two', 'v.1_000000.png'))]
    video = write_video(tmp_path / 'v.1.mp4', 1)
    frames = list(open_inputs([*paths, video, video])[1])
    assert [frame.stem for frame in frames] == [
        'x', 'x_2', 'v.1_000000', 'v.1_000000_2', 'v.1_000000_3']
    assert [frame.name for frame in frames[:2]] == ['x.png', 'x.png (x_2)']
