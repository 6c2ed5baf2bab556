# SPDX-License-Identifier: Apache-2.0
"""The data set by path: layout, classes, examples."""

from pathlib import Path

import numpy as np
import pytest

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.cityscapes import list_frames, read_image, read_labels
from blabberseg_ros.fpseg_tools.classes import ClassList, cityscapes_classes, read_classes
from blabberseg_ros.fpseg_tools.presence import class_presence, draw_examples, label_presence
from blabberseg_ros.models.fpseg_config import CITYSCAPES_CLASSES


def test_cityscapes_classes_are_those_of_the_published_weights() -> None:
    classes = cityscapes_classes()
    assert classes.names == CITYSCAPES_CLASSES
    assert classes.ids_of('road') == (7,)
    assert classes.ids_of('flat') == (7, 8, 9, 10)
    assert classes.ids_of('vehicle') == tuple(range(26, 34))
    benchmark = [classes.names.index(name) for name in classes.exclusive]
    assert benchmark == [0, 2, 5, 7, 8, 12, 15, 16, 17, 19, 20, 21, 23, 24, 26, 27, 30, 31, 32]
    assert classes.membership().sum(axis=1).tolist()[:3] == [1, 4, 1]


def test_world_set_has_the_layout_of_cityscapes(world_set: Path) -> None:
    train, val = (list_frames(world_set, split, labelled=True) for split in ('train', 'val'))
    assert (len(train), len(val)) == (48, 12)
    frame = train[0]
    city = frame.image.parent.name
    assert frame.image.parts[-4:-1] == ('leftImg8bit', 'train', city)
    assert frame.labels == (world_set / 'gtFine' / 'train' / city /
                            f'{frame.stem}_gtFine_labelIds.png')
    assert read_image(frame.image).shape == (96, 192, 3)
    assert read_labels(frame.labels).shape == (96, 192)
    assert len(read_classes(world_set / 'classes.yaml')) == 11
    # No picture is in both splits.
    assert not {frame.stem for frame in train} & {frame.stem for frame in val}


def test_missing_files_are_named(world_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match='splits found: train, val'):
        list_frames(world_set, 'test', labelled=False)
    image = tmp_path / 'leftImg8bit' / 'train' / 'town' / 'town_0_leftImg8bit.png'
    image.parent.mkdir(parents=True)
    image.write_bytes(b'')
    assert len(list_frames(tmp_path, 'train', labelled=False)) == 1
    with pytest.raises(ParameterError, match='town_0_gtFine_labelIds'):
        list_frames(tmp_path, 'train', labelled=True)
    with pytest.raises(ParameterError, match='not an image'):
        read_image(image)


@pytest.mark.parametrize(('text', 'reason'), [
    ('classes: {}', 'at least one'),
    ('classes: {a: [1], b: [300]}', '0 to 255'),
    ('classes: {a: []}', 'label ids'),
    ('classes: {a: [1], b: [1]}', 'share a label'),
    ('classes: {a: [1]}\nexclusive: [b]', 'is no class'),
    ('names: [a]', 'mapping `classes`'),
    ('classes: [', 'not a list of classes')])
def test_bad_class_lists_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / 'classes.yaml'
    path.write_text(text)
    with pytest.raises(ParameterError, match=reason):
        read_classes(path)


def test_presence_is_kept_until_a_label_map_changes(world_set: Path, tmp_path: Path) -> None:
    frames = list_frames(world_set, 'val', labelled=True)
    cache = tmp_path / 'labels.safetensors'
    table = label_presence(frames, cache, 1)
    for row, frame in zip(table, frames, strict=True):
        assert set(np.flatnonzero(row)) == set(np.unique(read_labels(frame.labels)))
    written = cache.stat().st_mtime_ns
    assert (label_presence(frames, cache, 1) == table).all()
    assert cache.stat().st_mtime_ns == written
    label_presence(frames[1:], cache, 1)
    assert cache.stat().st_mtime_ns != written


def test_a_class_is_present_where_one_of_its_labels_is() -> None:
    classes = ClassList(('near', 'far'), ((1, 2), (3,)))
    labels = np.zeros((3, 256), bool)
    labels[0, 2] = labels[1, 3] = labels[2, 7] = True
    assert class_presence(labels, classes.membership()).tolist() == [
        [True, False], [False, True], [False, False]]


def test_examples_follow_the_recipe() -> None:
    rng = np.random.default_rng(0)
    presence = np.stack([rng.random(400) < 0.05, rng.random(400) < 0.9, np.ones(400, bool),
                         np.zeros(400, bool)], axis=1)
    examples = draw_examples(presence, 3000, 0.2, (7, 0))
    assert examples[:5, 1].tolist() == [0, 1, 2, 3, 0]
    shows = presence[examples[:, 0], examples[:, 1]]
    share = [shows[examples[:, 1] == index].mean() for index in range(4)]
    # A rare class: 80 % of its examples show it. A common one: its own share.
    assert share == pytest.approx([0.8, presence[:, 1].mean(), 1.0, 0.0], abs=0.03)
    assert (draw_examples(presence, 3000, 0.2, (7, 0)) == examples).all()
    assert (draw_examples(presence, 3000, 0.2, (7, 1)) != examples).any()
