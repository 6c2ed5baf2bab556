# SPDX-License-Identifier: Apache-2.0
"""The procedural world: repeatable, complete, and consistent in itself."""

import numpy as np
import pytest

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.world import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    World,
    generate_world,
    mirrored,
)

SIZE_M = 90.0


@pytest.fixture(scope='module')
def world() -> World:
    return generate_world(4, 'suburb', SIZE_M)


def test_same_seed_gives_same_bytes(world: World) -> None:
    again = generate_world(4, 'suburb', SIZE_M)
    assert world.rgb.tobytes() == again.rgb.tobytes()
    assert world.labels.tobytes() == again.labels.tobytes()
    assert world.height_m.tobytes() == again.height_m.tobytes()
    assert world.people == again.people


def test_other_seed_gives_another_world(world: World) -> None:
    other = generate_world(5, 'suburb', SIZE_M)
    assert (world.labels != other.labels).mean() > 0.2


def test_family_is_drawn_from_the_training_families() -> None:
    drawn = {generate_world(seed, None, 40.0, 0.2).family for seed in range(12)}
    assert drawn <= set(FAMILIES)
    assert len(drawn) > 2


def test_families_for_training_and_for_tests_are_disjoint() -> None:
    assert FAMILIES
    assert HELD_OUT_FAMILIES
    assert not set(FAMILIES) & set(HELD_OUT_FAMILIES)


def test_shapes_and_types(world: World) -> None:
    side = round(SIZE_M / world.resolution_m)
    assert world.rgb.shape == (side, side, 3)
    assert world.rgb.dtype == np.uint8
    assert world.labels.shape == (side, side)
    assert world.labels.dtype == np.uint8
    assert world.height_m.shape == (side, side)
    assert world.height_m.dtype == np.float32


@pytest.mark.parametrize('family', FAMILIES + HELD_OUT_FAMILIES)
def test_every_class_is_on_every_map(family: str) -> None:
    for seed in (1, 2):
        world = generate_world(seed, family, SIZE_M, 0.2)
        assert set(np.unique(world.labels)) == set(classes.CLASSES)


@pytest.mark.parametrize('family', FAMILIES + HELD_OUT_FAMILIES)
def test_picture_has_texture_and_is_neither_black_nor_white(family: str) -> None:
    world = generate_world(7, family, SIZE_M, 0.2)
    grey = world.rgb.astype(float).mean(-1)
    assert 35 < grey.mean() < 190
    assert grey.std() > 10
    assert (grey < 2).mean() < 0.02
    assert (grey > 253).mean() < 0.02


def test_heights_follow_classes(world: World) -> None:
    def heights(label: int) -> np.ndarray:
        return world.height_m[world.labels == label]

    flat = np.isin(world.labels, (classes.ROAD, classes.SOIL, classes.FIELD))
    assert np.all(world.height_m[flat] == 0)
    assert 2.0 <= np.median(heights(classes.BUILDING)) <= 25.0
    assert 1.0 <= np.median(heights(classes.TREE)) <= 15.0
    assert 1.0 <= np.median(heights(classes.VEHICLE)) <= 3.5
    assert heights(classes.PERSON).max() == pytest.approx(1.7)
    assert world.height_m.min() == 0


def test_shadow_darkens_the_ground_and_keeps_its_label(world: World) -> None:
    """Beside a tall thing lies a shadow: some ground of one class is far darker than the rest."""
    grey = world.rgb.astype(float).mean(-1)[world.labels == classes.GRASS]
    assert np.percentile(grey, 3) < 0.7 * np.median(grey)


def test_label_at_reads_the_map(world: World) -> None:
    half, res = SIZE_M / 2, world.resolution_m
    for row, col in ((0, 0), (10, 700), (899, 3), (450, 450)):
        x, y = (col + 0.5) * res - half, half - (row + 0.5) * res
        assert world.label_at(x, y) == world.labels[row, col]


def test_label_at_continues_in_the_mirror(world: World) -> None:
    inside, outside = SIZE_M / 2 - 3.05, SIZE_M / 2 + 3.05
    assert world.label_at(outside, 7.15) == world.label_at(inside, 7.15)
    assert world.label_at(7.15, -outside) == world.label_at(7.15, -inside)
    assert world.label_at(7.15 + 4 * SIZE_M, 3.05) == world.label_at(7.15, 3.05)


def test_mirrored_index() -> None:
    index = np.array([-3, -1, 0, 3, 4, 7, 8, 11])
    assert mirrored(index, 4).tolist() == [2, 0, 0, 3, 3, 0, 0, 3]


def test_footprint_counts_classes_under_a_disc(world: World) -> None:
    spots = np.argwhere(world.labels == classes.BUILDING)
    row, col = spots[len(spots) // 2]
    x = (col + 0.5) * world.resolution_m - SIZE_M / 2
    y = SIZE_M / 2 - (row + 0.5) * world.resolution_m
    assert world.footprint(x, y, 0.0) == {classes.BUILDING: 1.0}
    assert not world.is_safe(x, y, 1.0)
    shares = world.footprint(x, y, 15.0)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    near = (np.indices(world.labels.shape) - np.array([row, col])[:, None, None]) ** 2
    disc = world.labels[near.sum(0) <= 150 ** 2]
    if min(row, col) > 150 and max(row, col) < world.labels.shape[0] - 151:
        assert shares[classes.BUILDING] == pytest.approx((disc == classes.BUILDING).mean())


def test_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r'moonbase.*suburb'):
        generate_world(1, 'moonbase')


def test_too_small_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match='too small'):
        generate_world(1, 'suburb', 5.0)
