# SPDX-License-Identifier: Apache-2.0
"""Where the demo's pilot lands: never on what is not known to be safe."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blabberseg_ros.demo.planner import CELL_M, GroundMap, Spot, Viewpoint

FOCAL = 0.6757  # 73 degrees
HIGH = Viewpoint(0.0, 0.0, 100.0, FOCAL)


def seen(*masks, view=HIGH, times=6) -> GroundMap:
    ground = GroundMap(0.0, 0.0)
    for _ in range(times):
        for mask in masks:
            ground.add_mask(mask, view)
    return ground


def patch(left_m, right_m, bottom_m, top_m, view=HIGH, side_px=352) -> np.ndarray:
    """Return a mask that is safe in one rectangle on the ground."""
    pixel_m = view.height_m / (view.focal * side_px)
    axis = (np.arange(side_px) - (side_px - 1) / 2) * pixel_m
    x_m, y_m = axis + view.x_m, view.y_m - axis
    inside = ((x_m > left_m) & (x_m < right_m))[None] & ((y_m > bottom_m) & (y_m < top_m))[:, None]
    return (inside * 255).astype(np.uint8)


def test_nothing_is_chosen_from_nothing():
    assert GroundMap(0.0, 0.0).best_spot(0.0, 0.0, 3.0) is None


def test_nothing_is_chosen_where_all_is_black():
    assert seen(np.zeros((352, 352), np.uint8)).best_spot(0.0, 0.0, 3.0) is None


def test_one_mask_is_not_enough():
    mask = patch(-30, 30, -30, 30)
    assert seen(mask, times=1).best_spot(0.0, 0.0, 3.0) is None
    assert seen(mask, times=3).best_spot(0.0, 0.0, 3.0) is not None


def test_the_spot_lies_where_the_mask_says():
    spot = seen(patch(20, 40, -50, -30)).best_spot(0.0, 0.0, 3.0)
    assert spot.x_m == pytest.approx(30, abs=2)
    assert spot.y_m == pytest.approx(-40, abs=2)
    assert spot.clearance_m == pytest.approx(10, abs=1)


def test_a_larger_area_wins_at_the_same_distance():
    small, large = patch(-44, -36, -4, 4), patch(30, 50, -10, 10)
    spot = seen(np.maximum(small, large)).best_spot(0.0, 0.0, 3.0)
    assert spot.x_m > 0


def test_the_closer_of_two_equal_areas_wins():
    near, far = patch(-30, -14, -8, 8), patch(40, 56, -8, 8)
    assert seen(np.maximum(near, far)).best_spot(0.0, 0.0, 3.0).x_m < 0


def test_a_spot_is_not_left_for_one_that_is_hardly_better():
    left, right = patch(-34, -20, -7, 7), patch(20, 35, -7.5, 7.5)
    ground = seen(np.maximum(left, right))
    assert ground.best_spot(0.0, 0.0, 3.0, Spot(-27.0, 0.0, 7.0)).x_m < 0
    assert ground.best_spot(5.0, 0.0, 3.0).x_m > 0


def test_too_little_room_is_no_spot():
    assert seen(patch(0, 4, 0, 4)).best_spot(0.0, 0.0, 3.0) is None


def test_a_spot_that_turns_unsafe_is_given_up():
    ground = seen(patch(-30, 30, -30, 30))
    for _ in range(3):
        ground.add_mask(np.zeros((352, 352), np.uint8), HIGH)
    assert ground.best_spot(0.0, 0.0, 3.0) is None


def test_what_has_left_the_view_is_remembered():
    ground = seen(patch(40, 60, 40, 60))
    ground.add_mask(np.zeros((352, 352), np.uint8), Viewpoint(0.0, 0.0, 20.0, FOCAL))
    assert ground.best_spot(0.0, 0.0, 3.0).x_m == pytest.approx(50, abs=2)


def test_a_new_question_begins_with_nothing():
    ground = seen(patch(-30, 30, -30, 30))
    ground.forget()
    assert ground.best_spot(0.0, 0.0, 3.0) is None


def test_steps_in_the_ground_are_avoided():
    view = Viewpoint(0.0, 0.0, 15.0, FOCAL)
    ground = seen(np.full((352, 352), 255, np.uint8), view=view)
    depth_m = np.full((352, 352), 15.0, np.float32)
    depth_m[:, :176] = 12.0  # a terrace of 3 m: its edge runs through the middle
    ground.add_depth(depth_m, view, 20.0)
    spot = ground.best_spot(0.0, 0.0, 2.0)
    assert abs(spot.x_m) > 2.0


def test_depth_beyond_the_sensors_range_says_nothing():
    ground = seen(np.full((352, 352), 255, np.uint8))
    depth_m = np.full((352, 352), 100.0, np.float32)
    depth_m[:, ::20] = 60.0
    before = ground.clearance_m()
    ground.add_depth(depth_m, HIGH, 20.0)
    assert np.array_equal(before, ground.clearance_m())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), height_m=st.floats(8.0, 120.0),
       x_m=st.floats(-60.0, 60.0), y_m=st.floats(-60.0, 60.0),
       size=st.sampled_from([(352, 352), (480, 640), (90, 160)]))
def test_a_spot_always_has_safe_ground_around_it(seed, height_m, x_m, y_m, size):
    random = np.random.default_rng(seed)
    coarse = (random.random((6, 8)) < 0.5).astype(np.uint8) * 255
    rows = np.arange(size[0]) * 6 // size[0]
    columns = np.arange(size[1]) * 8 // size[1]
    mask = coarse[np.ix_(rows, columns)]
    view = Viewpoint(x_m, y_m, height_m, FOCAL)
    spot = seen(mask, view=view, times=4).best_spot(x_m, y_m, 1.5)
    if spot is None:
        return
    pixel_m = height_m / (FOCAL * size[1])
    row = (size[0] - 1) / 2 - (spot.y_m - y_m) / pixel_m
    column = (size[1] - 1) / 2 + (spot.x_m - x_m) / pixel_m
    reach = max(0.0, spot.clearance_m - 2.5 * CELL_M - pixel_m) / pixel_m
    rows, columns = np.mgrid[:size[0], :size[1]]
    disc = np.hypot(rows - row, columns - column) <= max(reach, 0.5)
    assert disc.any()
    assert (mask[disc] > 0).all()


def test_the_share_of_a_view_that_a_disc_covers():
    view = Viewpoint(0.0, 0.0, 100.0, 0.5)  # 200 m wide
    assert view.share_of(10.0, (400, 400)) == pytest.approx(math.pi * 100 / 200**2)
    assert view.share_of(10.0, (400, 200)) == pytest.approx(math.pi * 100 / (200 * 100))
    assert replace(view, height_m=5.0).share_of(10.0, (400, 400)) > 1.0


def test_what_was_unsafe_from_near_is_not_safe_from_far():
    """Both looks take turns: else the vehicle would come down on the same place for ever."""
    ground, near = GroundMap(0.0, 0.0), Viewpoint(0.0, 0.0, 8.0, FOCAL)
    safe, unsafe = np.full((352, 352), 255, np.uint8), np.zeros((352, 352), np.uint8)
    for _ in range(4):
        ground.add_mask(safe, HIGH)
    assert ground.best_spot(0.0, 0.0, 3.0).distance_m(0.0, 0.0) < 1.0
    for _ in range(4):
        ground.add_mask(unsafe, near)
    for _ in range(20):
        ground.add_mask(safe, HIGH)
    elsewhere = ground.best_spot(0.0, 0.0, 3.0)
    assert max(abs(elsewhere.x_m), abs(elsewhere.y_m)) > 5.0
    for _ in range(4):
        ground.add_mask(safe, near)  # another look from near is believed
    assert ground.best_spot(0.0, 0.0, 3.0).distance_m(0.0, 0.0) < 1.0


def test_a_new_question_is_asked_of_all_ground_alike():
    ground = GroundMap(0.0, 0.0)
    ground.add_mask(np.zeros((352, 352), np.uint8), Viewpoint(0.0, 0.0, 8.0, FOCAL))
    ground.forget()
    for _ in range(4):
        ground.add_mask(np.full((352, 352), 255, np.uint8), HIGH)
    assert ground.best_spot(0.0, 0.0, 3.0).distance_m(0.0, 0.0) < 1.0


def test_a_way_is_clear_where_all_of_it_is_safe():
    ground = GroundMap(0.0, 0.0)
    mask = np.full((352, 352), 255, np.uint8)
    mask[:, 230:250] = 0  # a strip from north to south, 22 to 31 m in the east
    for _ in range(4):
        ground.add_mask(mask, HIGH)
    assert ground.clear_way(0.0, 0.0, Spot(15.0, 40.0, 5.0))
    assert ground.clear_way(40.0, -50.0, Spot(50.0, 50.0, 5.0))
    assert not ground.clear_way(0.0, 0.0, Spot(40.0, 0.0, 5.0))
    assert not ground.clear_way(0.0, 0.0, Spot(0.0, 90.0, 5.0))
    assert not ground.clear_way(0.0, 0.0, Spot(900.0, 0.0, 5.0))
