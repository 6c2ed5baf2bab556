# SPDX-License-Identifier: Apache-2.0
"""Fly over a simulated landscape: aerial camera, heatmap node and, on request, DOVESEI's lander.

`ros2 launch blabberseg_ros aerialview.launch.py --show-args` lists the arguments. Each is passed
on to every node that has it as a parameter, in the type of its default; those of the model only
where they are given, so that a params_file decides otherwise.
"""

from launch import Condition, LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, Shutdown
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node, SetParameter, SetParametersFromFile
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# Each argument's name, default and meaning.
ARGUMENTS = {
    # Topics. The defaults are DOVESEI's.
    'img_topic': ('/carla/flying_sensor/rgb_down/image', 'camera image'),
    'depth_topic': ('/carla/flying_sensor/depth_down/image', 'depth image'),
    'twist_topic': ('/quadctrl/flying_sensor/ctrl_twist_sp', 'velocity that the drone shall fly'),
    # Camera.
    'source': ('world', 'what the camera sees: world, or path of a video or a folder of images'),
    'seed': (0, 'which simulated landscape'),
    'family': ('', 'kind of simulated landscape; empty: the seed chooses'),
    'width_px': (352, 'image width'),
    'height_px': (352, 'image height'),
    'fov': (73.0, 'horizontal field of view in degrees'),
    'rate_hz': (10.0, 'frames per second'),
    'z_init': (100.0, 'altitude at the start in metres'),
    'gust_m_s': (0.0, 'drift by wind, standard deviation'),
    # Model. Empty: as in params_file.
    'bundle': ('', 'model: folder or name of a bundle; auto: demonstration of the backend'),
    'backend': ('', 'model family: clipseg, lseg, fpseg or segformer; auto: of the bundle'),
    'engine': ('', 'what runs the model; `blabberseg doctor` lists the names'),
    'device': ('', 'where it runs: auto, cpu or cuda'),
    'prompts_file': ('', 'YAML file with positive, negative and template'),
    'classes_file': ('', 'FPSeg: file of classes besides those of the bundle'),
    'decode_budget_ms': ('', 'FPSeg: time for the classes of a frame in ms; 0: no limit'),
    'stream': ('', 'work on camera frames: auto (while somebody subscribes), always or off'),
    # Fusion.
    'safety_threshold': (0.85, 'probability from which the search for a threshold starts'),
    'min_threshold': (0.3, 'floor of that search; 0: none, as in DOVESEI'),
    'dynamic_threshold': (0.1, 'fraction of the image that shall be safe; 0: never lower'),
    'blur_kernel_size': (15, "side of the box blur in pixels at the model's resolution"),
    # DOVESEI's lander. Its prompts are empty, so that the heatmap node's are used.
    'positive_prompts': ('', "safe, separated by ';'; empty: those of the heatmap node"),
    'negative_prompts': ('', "unsafe, separated by ';'; empty: those of the heatmap node"),
    'prompt_engineering': (
        'aerial view, drone footage photo of {}, shade, shadows, low resolution',
        'sentence around positive_prompts and negative_prompts'),
    'heatmap_topic': ('/heatmap', "lander's debug image"),
    'depth_proj_topic': ('/depth_proj', "lander's depth debug image"),
    'beta': (0.0333, 'weight of a new heatmap in the moving average'),
    'gain': (0.5, 'gain from position error to velocity'),
    'aiming_gain_mult': (0.5, 'factor on gain while aiming'),
    'aiming_descending_mult': (0.5, 'factor on the descent while aiming'),
    'z_speed_landing': (3.0, 'landing speed in m/s'),
    'z_min_speed_landing': (0.5, 'smallest landing speed in m/s'),
    'z_gain_landing': (0.02, 'landing speed per metre of altitude'),
    'z_speed_climbing': (6.0, 'climbing speed in m/s'),
    'depth_smoothness': (0.5, 'largest standard deviation of depth on flat ground, in metres'),
    'depth_decimation_factor': (10, 'depth image is shrunk by this factor'),
    'altitude_landed': (5.0, 'altitude that counts as landed, in metres'),
    'safe_altitude': (50, 'altitude without obstacles, in metres'),
    'safety_radius': (2.0, 'radius of the drone with its margin, in metres'),
    'dist_func_threshold': (0.6, 'cut of the normalised distance to unsafe ground'),
    'giveup_after_sec': (5, 'seconds before a blocked landing is given up'),
    'max_depth_sensing': (20, 'range of the depth sensor in metres'),
    'use_random_search4new_place': (False, 'fly off at random after a landing was given up'),
    'search4new_place_max_time': (60, 'seconds of flying towards another place'),
    'max_landing_time_sec': (300, 'seconds over which it becomes less choosy'),
    'min_conservative_gain': (0.5, 'how choosy it stays'),
    'sensor_warm_up_cycles': (5, 'heatmaps that are ignored at the start'),
    'savefile': ('', 'JSON file of its flight, without the suffix; empty: none'),
}

CAMERA = ('source', 'seed', 'family', 'width_px', 'height_px', 'fov', 'rate_hz', 'z_init',
          'gust_m_s', 'depth_topic', 'twist_topic')
MODEL_TEXTS = (
    'bundle', 'backend', 'engine', 'device', 'prompts_file', 'classes_file', 'stream')
MODEL_NUMBERS = ('decode_budget_ms',)
HEATMAP = ('img_topic', 'safety_threshold', 'min_threshold', 'dynamic_threshold',
           'blur_kernel_size')
LANDER = (
    'img_topic', 'depth_topic', 'twist_topic', 'heatmap_topic', 'depth_proj_topic',
    'positive_prompts', 'negative_prompts', 'prompt_engineering', 'safety_threshold',
    'blur_kernel_size', 'beta', 'gain', 'aiming_gain_mult', 'aiming_descending_mult',
    'z_speed_landing', 'z_min_speed_landing', 'z_gain_landing', 'z_speed_climbing',
    'depth_smoothness', 'depth_decimation_factor', 'altitude_landed', 'safe_altitude',
    'safety_radius', 'dist_func_threshold', 'giveup_after_sec', 'max_depth_sensing',
    'use_random_search4new_place', 'search4new_place_max_time', 'max_landing_time_sec',
    'min_conservative_gain', 'sensor_warm_up_cycles')


def parameters(names: tuple[str, ...], **renamed: str) -> dict[str, ParameterValue]:
    """Return a node's parameters, each with the value of its launch argument.

    Args:
        names: parameters that have the name of their argument.
        renamed: parameter = argument, where the names differ.
    """
    arguments = {**{name: name for name in names}, **renamed}
    return {
        parameter: ParameterValue(
            LaunchConfiguration(argument), value_type=type(ARGUMENTS[argument][0]))
        for parameter, argument in arguments.items()}


def set_if_given(name: str, quote: str) -> SetParameter:
    """Set a parameter of the nodes that follow in the group, unless its argument is empty.

    Args:
        name: of parameter and argument.
        quote: goes round the value, so that a text like `off` is not read as a bool.
    """
    return SetParameter(
        name, ParameterValue([quote, LaunchConfiguration(name), quote], value_type=str),
        condition=Condition(predicate=lambda context: context.launch_configurations[name] != ''))


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and the nodes. When one node ends, all end."""
    others = PathJoinSubstitution(
        [FindPackageShare('blabberseg_ros'), 'config', 'clipseg_node.yaml'])
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=str(default), description=meaning)
          for name, (default, meaning) in ARGUMENTS.items()),
        DeclareLaunchArgument(
            'lander', default_value='false',
            description="start DOVESEI's lander as well; its workspace must be sourced"),
        DeclareLaunchArgument(
            'debug', default_value='', choices=['', 'debug'],
            description="lander's word for a flight without velocity commands"),
        DeclareLaunchArgument(
            'params_file', default_value=others,
            description='all other parameters of the heatmap node; what is given above wins'),
        Node(
            package='blabberseg_ros', executable='aerial_camera', name='aerial_camera',
            output='screen', on_exit=Shutdown(),
            parameters=[parameters(CAMERA, rgb_topic='img_topic')]),
        GroupAction([
            SetParametersFromFile(LaunchConfiguration('params_file')),
            *(set_if_given(name, "'") for name in MODEL_TEXTS),
            *(set_if_given(name, '') for name in MODEL_NUMBERS),
            Node(
                package='blabberseg_ros', executable='clipseg_node',
                name='generate_landing_heatmap', output='screen', on_exit=Shutdown(),
                parameters=[parameters(HEATMAP)]),
        ]),
        Node(
            package='ros2_open_voc_landing_heatmap', executable='lander_publisher',
            name='landing_module', output='screen', on_exit=Shutdown(),
            condition=IfCondition(LaunchConfiguration('lander')),
            arguments=[LaunchConfiguration('debug'),
                       ['savefile=', LaunchConfiguration('savefile')]],
            parameters=[parameters(LANDER, seg_dynamic_threshold='dynamic_threshold')]),
    ])
