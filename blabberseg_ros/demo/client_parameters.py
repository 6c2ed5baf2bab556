# SPDX-License-Identifier: Apache-2.0
"""The demo client's parameters: one table for code, descriptors and README."""

from dataclasses import dataclass

from blabberseg_ros.nodes.parameter_table import ParameterTable, parameter


@dataclass(frozen=True)
class ClientParameters:
    """Values of all parameters, checked."""

    rgb_topic: str = parameter(
        '/carla/flying_sensor/rgb_down/image', 'Camera image in.')
    depth_topic: str = parameter(
        '/carla/flying_sensor/depth_down/image', 'Depth image in, 32FC1, in metres.')
    camera_info_topic: str = parameter(
        '/carla/flying_sensor/rgb_down/camera_info', 'Camera model in.')
    pose_topic: str = parameter(
        '/aerial_camera/pose', 'Position in, with the stamps of the images.')
    landed_topic: str = parameter('/aerial_camera/landed', 'Whether the vehicle stands, in.')
    twist_topic: str = parameter(
        '/quadctrl/flying_sensor/ctrl_twist_sp', 'Velocity command out.')
    heatmap_node: str = parameter(
        '/generate_landing_heatmap', 'The heatmap node: its service has this name, too.')
    safety_threshold: float = parameter(
        0.8, 'Sent with each request.', minimum=0.001, maximum=1.0)
    blur_kernel_size: int = parameter(15, 'Sent with each request.', minimum=1, maximum=127)
    dynamic_threshold: float = parameter(
        0.1, 'Sent with each request, or less: no more than room to land on, as a share of what '
        'is seen from that height.', minimum=0.0, maximum=1.0)
    safety_radius_m: float = parameter(
        3.0, 'Radius of the safe ground that a spot needs.', minimum=0.5, maximum=20.0)
    depth_range_m: float = parameter(
        20.0, 'What is farther away is not measured, as with a real stereo camera.',
        minimum=0.0, maximum=1000.0)
    max_map_age_s: float = parameter(
        1.0, 'Without the heatmap of a frame this young it hovers.', minimum=0.1,
        maximum=60.0)
    answer_timeout_s: float = parameter(
        2.0, 'A request without an answer for so long is given up.', minimum=0.1, maximum=60.0)
    time_limit_s: float = parameter(
        45.0, 'The flight ends after this time, landed or not.', minimum=1.0, maximum=3600.0)
    change_prompts: bool = parameter(
        True, 'Change the prompts on the way down: what it was about to land on becomes unsafe.')
    change_below: float = parameter(
        0.6, 'Change them below this share of the first height, or of the time limit at the '
        'latest.', minimum=0.0, maximum=1.0)


CLIENT_TABLE = ParameterTable(ClientParameters)
