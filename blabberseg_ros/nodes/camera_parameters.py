# SPDX-License-Identifier: Apache-2.0
"""The aerial camera's parameters: one table for code, descriptors and README.

Names of topics, `fov`, `z_init`, `parent_frame` and `child_frame` are those of the simulator that
DOVESEI flies with.
"""

from dataclasses import dataclass

from blabberseg_ros.nodes.parameter_table import ParameterTable, parameter
from blabberseg_ros.sim.flight import FlightLimits

WORLD = 'world'


@dataclass(frozen=True)
class CameraParameters:
    """Values of all parameters, checked."""

    source: str = parameter(
        WORLD, 'What the camera sees: `world` for the procedural world, or the path of a video '
        'file or of a folder of images, which are played at the rate and over again.')
    seed: int = parameter(
        0, 'World: its number; the same number makes the same world. Also of the gusts.',
        minimum=0, maximum=2**31 - 1)
    family: str = parameter(
        '', 'World: kind of landscape; empty: the seed chooses one. A wrong name is refused with '
        'the list of right ones.')
    world_size_m: float = parameter(
        300.0, 'World: its side in metres; the vehicle is kept inside.', minimum=50.0,
        maximum=1000.0)
    width_px: int = parameter(352, 'Width of the frames.', minimum=16, maximum=4096)
    height_px: int = parameter(352, 'Height of the frames.', minimum=16, maximum=4096)
    fov: float = parameter(
        73.0, 'Horizontal field of view in degrees.', minimum=10.0, maximum=150.0)
    rate_hz: float = parameter(10.0, 'Frames per second.', minimum=0.1, maximum=100.0)
    x_init: float = parameter(
        0.0, 'Start, metres east of the middle.', minimum=-500.0, maximum=500.0)
    y_init: float = parameter(
        0.0, 'Start, metres north of the middle.', minimum=-500.0, maximum=500.0)
    z_init: float = parameter(
        100.0, 'Start, metres above the ground.', minimum=2.0, maximum=500.0)
    max_horizontal_m_s: float = parameter(
        15.0, 'Largest speed over ground.', minimum=0.1, maximum=50.0)
    max_vertical_m_s: float = parameter(
        5.0, 'Largest speed up or down.', minimum=0.1, maximum=20.0)
    max_acceleration_m_s2: float = parameter(
        6.0, 'Largest acceleration.', minimum=0.1, maximum=50.0)
    command_timeout_s: float = parameter(
        0.5, 'Without a new Twist for so long the vehicle stops and hovers.', minimum=0.05,
        maximum=10.0)
    gust_m_s: float = parameter(
        0.0, 'Standard deviation of the drift by wind gusts, along each axis.', minimum=0.0,
        maximum=5.0)
    rgb_topic: str = parameter(
        '/carla/flying_sensor/rgb_down/image', 'Camera image out, rgb8.')
    depth_topic: str = parameter(
        '/carla/flying_sensor/depth_down/image', 'Depth image out, 32FC1, in metres.')
    camera_info_topic: str = parameter(
        '/carla/flying_sensor/rgb_down/camera_info', 'Camera model out.')
    twist_topic: str = parameter(
        '/quadctrl/flying_sensor/ctrl_twist_sp', 'Velocity command in: forward (north), left '
        '(west), up; rotation is ignored.')
    parent_frame: str = parameter('map', 'Frame of the poses.')
    child_frame: str = parameter('flying_sensor', 'Frame of the images.')

    @property
    def size_px(self) -> tuple[int, int]:
        """Return width and height of the frames."""
        return self.width_px, self.height_px

    @property
    def start_m(self) -> tuple[float, float, float]:
        """Return the start: east, north, up."""
        return self.x_init, self.y_init, self.z_init

    def limits(self, reach_m: float) -> FlightLimits:
        """Return what the vehicle can do.

        Args:
            reach_m: distance from the middle that it must keep within.
        """
        return FlightLimits(
            horizontal_m_s=self.max_horizontal_m_s, vertical_m_s=self.max_vertical_m_s,
            acceleration_m_s2=self.max_acceleration_m_s2,
            command_timeout_s=self.command_timeout_s, gust_m_s=self.gust_m_s, reach_m=reach_m)


CAMERA_TABLE = ParameterTable(CameraParameters)
