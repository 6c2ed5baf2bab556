# SPDX-License-Identifier: Apache-2.0
"""The camera: geometry, mirror, depth and detail."""

import numpy as np
import pytest

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.render import Renderer, ground_width_m, render
from blabberseg_ros.sim.world import World, generate_world

SIDE_M = 80.0
RESOLUTION_M = 0.1
PIXELS = round(SIDE_M / RESOLUTION_M)


@pytest.fixture(scope='module')
def world() -> World:
    return generate_world(11, 'town', SIDE_M, RESOLUTION_M)


@pytest.fixture(scope='module')
def camera(world: World) -> Renderer:
    return Renderer(world)


def altitude_for(gsd_m: float, width_px: int) -> float:
    """Give the altitude at which a pixel covers `gsd_m`."""
    return gsd_m * width_px / ground_width_m(1.0)


def test_ground_width_at_altitude() -> None:
    assert ground_width_m(100.0, 73.0) == pytest.approx(147.99, abs=0.01)
    assert ground_width_m(10.0, 90.0) == pytest.approx(20.0)


def test_view_at_map_scale_is_the_map(world: World, camera: Renderer) -> None:
    view = camera.render(0, 0, altitude_for(RESOLUTION_M, 200), size_px=(200, 120))
    rows = slice(PIXELS // 2 - 60, PIXELS // 2 + 60)
    cols = slice(PIXELS // 2 - 100, PIXELS // 2 + 100)
    assert np.array_equal(view.labels, world.labels[rows, cols])
    assert np.array_equal(view.rgb, world.rgb[rows, cols])


def test_field_of_view_is_horizontal(world: World, camera: Renderer) -> None:
    wide = camera.render(0, 0, altitude_for(RESOLUTION_M, 200), size_px=(200, 80))
    tall = camera.render(0, 0, altitude_for(RESOLUTION_M, 200), size_px=(200, 160))
    assert np.array_equal(wide.labels, tall.labels[40:120])


def test_east_is_right_and_north_is_up(camera: Renderer) -> None:
    altitude = altitude_for(RESOLUTION_M, 200)
    here = camera.render(0, 0, altitude, size_px=(200, 200)).labels
    east = camera.render(5.0, 0, altitude, size_px=(200, 200)).labels
    north = camera.render(0, 5.0, altitude, size_px=(200, 200)).labels
    assert np.array_equal(here[:, 50:], east[:, :-50])
    assert np.array_equal(here[:-50], north[50:])


def test_yaw_turns_the_camera_counter_clockwise(camera: Renderer) -> None:
    altitude = altitude_for(RESOLUTION_M, 200)
    here = camera.render(0, 0, altitude, size_px=(200, 200)).labels
    turned = camera.render(0, 0, altitude, np.pi / 2, size_px=(200, 200)).labels
    # The camera turned left, so the picture turns right (clockwise).
    assert (turned == np.rot90(here, -1)).mean() > 0.99


def test_outside_the_map_is_its_mirror_image(world: World, camera: Renderer) -> None:
    padded = np.pad(world.labels, 2 * PIXELS, mode='symmetric')
    altitude = altitude_for(RESOLUTION_M, 300)
    for x_m, y_m in ((38.0, 5.0), (-70.0, 45.0), (95.0, -90.0)):
        view = camera.render(x_m, y_m, altitude, size_px=(300, 300))
        col = round((x_m + SIDE_M / 2) / RESOLUTION_M) - 150 + 2 * PIXELS
        row = round((SIDE_M / 2 - y_m) / RESOLUTION_M) - 150 + 2 * PIXELS
        assert np.array_equal(view.labels, padded[row:row + 300, col:col + 300])


def test_far_away_is_the_same_as_two_maps_nearer(camera: Renderer) -> None:
    near = camera.render(3.0, -7.0, 30.0, 0.4)
    far = camera.render(3.0 + 40 * SIDE_M, -7.0 - 60 * SIDE_M, 30.0, 0.4)
    assert (near.labels == far.labels).mean() > 0.999


def test_a_view_wider_than_the_map_is_filled(camera: Renderer) -> None:
    view = camera.render(10.0, 20.0, 400.0)
    assert view.labels.min() >= 1
    assert view.rgb.astype(float).mean() > 20


def test_depth_is_altitude_less_height(world: World, camera: Renderer) -> None:
    altitude = altitude_for(RESOLUTION_M, 200)
    view = camera.render(0, 0, altitude, size_px=(200, 200))
    middle = slice(PIXELS // 2 - 100, PIXELS // 2 + 100)
    expected = np.maximum(altitude - world.height_m[middle, middle], 0.1)
    assert view.depth_m.dtype == np.float32
    assert np.allclose(view.depth_m, expected, atol=1e-5)


def test_depth_below_a_roof_is_clipped(world: World, camera: Renderer) -> None:
    row, col = np.argwhere(world.height_m > 6.0)[0]
    x = (col + 0.5) * RESOLUTION_M - SIDE_M / 2
    y = SIDE_M / 2 - (row + 0.5) * RESOLUTION_M
    assert camera.render(x, y, 1.0, size_px=(9, 9)).depth_m[4, 4] == pytest.approx(0.1)


def test_high_views_average_and_do_not_alias(world: World, camera: Renderer) -> None:
    """The mean colour stays and the pixel noise falls as the camera climbs."""
    whole = world.rgb.reshape(-1, 3).mean(0)
    view = camera.render(0, 0, altitude_for(RESOLUTION_M * 8, 100), size_px=(100, 100))
    assert np.allclose(view.rgb.reshape(-1, 3).mean(0), whole, atol=2.0)
    skipped = world.rgb[::8, ::8].astype(float)
    assert view.rgb.astype(float).std() < skipped.std()


def test_low_views_show_finer_texture_than_the_map(world: World, camera: Renderer) -> None:
    """Without added detail a view at 1/10 of the map's scale would be almost smooth."""
    row, col = np.argwhere(world.labels == classes.GRASS)[50]
    x = (col + 0.5) * RESOLUTION_M - SIDE_M / 2
    y = SIDE_M / 2 - (row + 0.5) * RESOLUTION_M
    view = camera.render(x, y, altitude_for(0.01, 352))
    grass = view.labels == classes.GRASS
    step = np.abs(np.diff(view.rgb[..., 1].astype(float), axis=1))[grass[:, 1:]]
    assert step.mean() > 0.5


def test_detail_is_fixed_to_the_ground(camera: Renderer) -> None:
    altitude = altitude_for(0.025, 200)
    here = camera.render(0, 0, altitude, size_px=(200, 200)).rgb.astype(int)
    moved = camera.render(1.0, 0, altitude, size_px=(200, 200)).rgb.astype(int)
    assert np.abs(here[:, 40:] - moved[:, :-40]).mean() < 1.0


def test_people_are_drawn_in_detail_from_low_altitude(world: World, camera: Renderer) -> None:
    person = next(
        p for p in world.people
        if not p.lying and world.label_at(p.x_m, p.y_m) == classes.PERSON)
    view = camera.render(person.x_m, person.y_m, altitude_for(0.01, 200), size_px=(200, 200))
    assert view.labels[100, 100] == classes.PERSON
    assert (view.labels == classes.PERSON).sum() > 300
    assert len(np.unique(view.rgb[80:120, 80:120].reshape(-1, 3), axis=0)) > 20


def test_plain_function_gives_the_same_picture(world: World, camera: Renderer) -> None:
    ours, theirs = render(world, 1.0, 2.0, 20.0, 0.3), camera.render(1.0, 2.0, 20.0, 0.3)
    assert np.array_equal(ours.rgb, theirs.rgb)
    assert np.array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize('bad', [
    {'altitude_m': 0.0}, {'altitude_m': -1.0}, {'altitude_m': float('nan')},
    {'altitude_m': 5.0, 'fov_deg': 180.0}, {'altitude_m': 5.0, 'size_px': (0, 10)}])
def test_impossible_cameras_are_refused(camera: Renderer, bad: dict) -> None:
    with pytest.raises(ValueError, match='No picture'):
        camera.render(0, 0, **bad)
