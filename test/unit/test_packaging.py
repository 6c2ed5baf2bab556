# SPDX-License-Identifier: Apache-2.0
"""The package as others see it: metadata, installed files, launch file, configuration."""

import ast
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

import blabberseg_ros
from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.prompts import (
    DEFAULT_NEGATIVE,
    DEFAULT_POSITIVE,
    DEFAULT_TEMPLATE,
    PromptSet,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'blabberseg_ros'
LAUNCH_FILE = ROOT / 'launch' / 'aerialview.launch.py'
MANIFESTS = [ROOT / 'package.xml', *sorted((ROOT / 'interfaces').glob('*/package.xml'))]
SOURCES = [path for folder in ('blabberseg_ros', 'test', 'scripts', 'launch', 'interfaces')
           for path in sorted((ROOT / folder).rglob('*'))
           if path.suffix in ('.py', '.srv', '.js', '.css') and '__pycache__' not in path.parts]
# ROS modules whose package has another name.
PACKAGE_OF_MODULE = {'tf2_ros': 'tf2_ros_py'}
DISTRIBUTION_OF_MODULE = {
    'cv2': 'opencv-python-headless', 'open_clip': 'open_clip_torch', 'PIL': 'pillow',
    'yaml': 'pyyaml'}
BROUGHT_BY_OTHERS = {'triton', 'torchvision'}  # by torch and by open_clip_torch
ROS_MODULES = re.compile(
    r'rclpy|rcl_interfaces|cv_bridge|tf2_\w+|launch\w*|ament_\w+|message_filters|\w+_msgs|'
    r'\w+_interfaces|\w+_srv')


def imports_of(path: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split('.')[0])
    return names


def literal(path: Path, name: str) -> object:
    """Return the value of a module's constant without running the module."""
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f'{path} has no constant {name}')


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda path: path.parent.name)
def test_manifests_agree(path):
    package = ElementTree.parse(path).getroot()
    assert package.get('format') == '3'
    assert package.findtext('version') == blabberseg_ros.__version__
    assert package.findtext('license') == 'Apache-2.0'
    folder = 'blabberseg_ros' if path.parent == ROOT else path.parent.name
    assert package.findtext('name') == folder
    kind = 'ament_python' if path.parent == ROOT else 'ament_cmake'
    assert package.findtext('export/build_type') == kind


def test_every_ros_import_is_a_declared_dependency():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    declared = {item.text for item in package if item.tag.endswith('depend')}
    used = set()
    for path in [*PACKAGE.rglob('*.py'), LAUNCH_FILE]:
        used |= {name for name in imports_of(path) if ROS_MODULES.fullmatch(name)}
    assert {'rclpy', 'sensor_msgs'} <= used
    assert {PACKAGE_OF_MODULE.get(name, name) for name in used} <= declared


def test_ros_stays_inside_the_nodes():
    allowed = (PACKAGE / 'nodes', PACKAGE / 'demo')
    outside = [path for path in PACKAGE.rglob('*.py')
               if not any(folder in path.parents for folder in allowed)]
    guilty = {path.name: ros for path in outside
              if (ros := {name for name in imports_of(path) if ROS_MODULES.fullmatch(name)}
                  - {'blabberseg_ros'})}
    assert not guilty


def test_importing_costs_nothing():
    script = ('import sys, blabberseg_ros, blabberseg_ros.segmenter; '
              'print(*({name.split(".")[0] for name in sys.modules} & {"torch", "onnxruntime", '
              '"open_clip", "transformers", "rclpy", "tensorrt", "pycuda"}))')
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == ''


def test_each_source_file_names_its_licence():
    assert len(SOURCES) > 20
    without = [path for path in SOURCES if 'SPDX-License-Identifier: Apache-2.0' not in
               '\n'.join(path.read_text(encoding='utf-8').split('\n')[:2])]
    assert not without


def test_each_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob('*.py')}
    assert not [folder for folder in folders if not (folder / '__init__.py').exists()]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, as pip does."""
    folder = tmp_path_factory.mktemp('wheel')
    copy = folder / 'source'
    for name in ('resource', 'config', 'launch', 'blabberseg_ros'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('package.xml', 'setup.py', 'setup.cfg', 'pyproject.toml', 'LICENSE',
                 'THIRD_PARTY.md'):
        shutil.copy(ROOT / name, copy)
    bundle = copy / 'engines' / 'a_bundle'
    (bundle / 'deep').mkdir(parents=True)
    (bundle / 'bundle.yaml').write_text('format: 1\n')
    (bundle / 'deep' / 'file.onnx').write_text('')
    (bundle / '.hidden').write_text('')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
         '--wheel-dir', folder, copy], check=True, capture_output=True)
    return next(folder.glob('*.whl'))


def test_wheel_holds_everything(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(
            next(name for name in names if name.endswith('entry_points.txt'))).decode())
    share = next(name for name in names if name.endswith('share/blabberseg_ros/package.xml'))
    share = share.removesuffix('package.xml')
    installed = {name.removeprefix(share) for name in names if name.startswith(share)}
    assert {'engines/a_bundle/bundle.yaml', 'engines/a_bundle/deep/file.onnx',
            'launch/aerialview.launch.py', 'config/prompts_dovesei.yaml',
            'config/clipseg_node.yaml'} <= installed
    assert not [name for name in installed if '/.' in name]
    sources = {path.relative_to(wheel.parent / 'source').as_posix()
               for path in (wheel.parent / 'source' / 'blabberseg_ros').rglob('*')
               if path.is_file() and path.suffix != '.pyc'}
    assert {'blabberseg_ros/py.typed', 'blabberseg_ros/nodes/heatmap_node.py'} <= sources
    assert sources <= names
    scripts = dict(entry_points['console_scripts'])
    assert scripts['getlandingheatmap_service'] == scripts['clipseg_node']
    assert {'blabberseg', 'aerial_camera', 'demo_client',
            *(f'{family}_node' for family in FAMILIES)} <= set(scripts)
    for target in scripts.values():
        module, function = target.split(':')
        source = ROOT / (module.replace('.', '/') + '.py')
        assert function in {node.name for node in ast.parse(source.read_text()).body
                            if isinstance(node, ast.FunctionDef)}


def test_every_import_is_a_declared_requirement(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(
            name for name in archive.namelist() if name.endswith('METADATA'))).decode()
    declared = {match.lower().replace('_', '-')
                for match in re.findall(r'^Requires-Dist: ([\w-]+)', metadata, re.MULTILINE)}
    used = {name for path in PACKAGE.rglob('*.py') for name in imports_of(path)
            if name not in sys.stdlib_module_names and not ROS_MODULES.fullmatch(name)}
    used -= {'blabberseg_ros', *BROUGHT_BY_OTHERS}
    wanted = {DISTRIBUTION_OF_MODULE.get(name, name).lower().replace('_', '-') for name in used}
    assert {'numpy', 'torch'} <= wanted <= declared


def test_installed_bundles_are_found_from_any_directory(wheel, tmp_path):
    # Or pip removes the package from the environment that the tests run in.
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
                    '--ignore-installed', '--prefix', tmp_path / 'prefix', wheel],
                   check=True, capture_output=True)
    site = next((tmp_path / 'prefix').rglob('site-packages'))
    script = ('import blabberseg_ros; from blabberseg_ros.bundle import find_bundle; '
              'print(blabberseg_ros.__file__); print(find_bundle("a_bundle"))')
    done = subprocess.run(
        [sys.executable, '-c', script], cwd='/', capture_output=True, text=True, check=True,
        env={'PYTHONPATH': str(site), 'AMENT_PREFIX_PATH': str(tmp_path / 'prefix')})
    module, found = done.stdout.split()
    assert Path(module).parent.parent == site
    assert Path(found) == tmp_path / 'prefix/share/blabberseg_ros/engines/a_bundle'


def test_launch_file_only_declares():
    tree = ast.parse(LAUNCH_FILE.read_text(encoding='utf-8'))
    compile(tree, str(LAUNCH_FILE), 'exec')
    called = {getattr(node.func, 'id', getattr(node.func, 'attr', ''))
              for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {'eval', 'exec', 'system', 'run', 'Popen', 'PythonExpression',
                         'OpaqueFunction', 'ExecuteProcess', 'open'}
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Try, ast.If))]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == 'executable':
            assert node.value.value in {'aerial_camera', 'clipseg_node', 'lander_publisher'}


def test_launch_arguments_are_declared_and_used():
    arguments = literal(LAUNCH_FILE, 'ARGUMENTS')
    used = {name for table in ('CAMERA', 'HEATMAP', 'MODEL_TEXTS', 'MODEL_NUMBERS', 'LANDER')
            for name in literal(LAUNCH_FILE, table)}
    used |= {'dynamic_threshold',  # the lander calls it seg_dynamic_threshold
             'savefile'}           # a word of its command line
    assert used == set(arguments)
    assert all(meaning for _, meaning in arguments.values())


def test_launch_arguments_have_the_type_of_the_parameter():
    from blabberseg_ros.nodes.camera_parameters import CameraParameters
    from blabberseg_ros.nodes.parameters import HeatmapParameters
    arguments = literal(LAUNCH_FILE, 'ARGUMENTS')
    tables = {'HEATMAP': HeatmapParameters(), 'CAMERA': CameraParameters()}
    for table, defaults in tables.items():
        for name in literal(LAUNCH_FILE, table):
            assert type(arguments[name][0]) is type(getattr(defaults, name)), name
    assert CameraParameters().rgb_topic == arguments['img_topic'][0]
    for table, kind in (('MODEL_TEXTS', str), ('MODEL_NUMBERS', float)):
        for name in literal(LAUNCH_FILE, table):
            assert isinstance(getattr(HeatmapParameters(), name), kind), name
            assert arguments[name][0] == '', 'params_file decides unless one is given'


def test_launch_gives_the_lander_the_values_of_doveseis_aerial_launch():
    arguments = literal(LAUNCH_FILE, 'ARGUMENTS')
    expected = {
        'gain': 0.5, 'altitude_landed': 5.0, 'safe_altitude': 50, 'safety_radius': 2.0,
        'safety_threshold': 0.85, 'blur_kernel_size': 15, 'dynamic_threshold': 0.1,
        'dist_func_threshold': 0.6, 'giveup_after_sec': 5, 'max_landing_time_sec': 300,
        'z_speed_climbing': 6.0, 'search4new_place_max_time': 60, 'max_depth_sensing': 20}
    for name, value in expected.items():
        # The lander's own declarations are static: 50 is not 50.0.
        assert (arguments[name][0], type(arguments[name][0])) == (value, type(value)), name
    assert arguments['beta'][0] == pytest.approx(1 / 30, rel=2e-3)
    assert arguments['min_threshold'][0] == 0.3


def test_launch_description_is_generated():
    pytest.importorskip('launch_ros', reason='no launch')
    import runpy
    description = runpy.run_path(str(LAUNCH_FILE))['generate_launch_description']()
    declared = {argument.name for argument in description.get_launch_arguments()}
    assert set(literal(LAUNCH_FILE, 'ARGUMENTS')) | {'lander', 'debug', 'params_file'} <= declared


@pytest.mark.parametrize('family', FAMILIES)
def test_parameter_files_are_those_of_the_nodes(family):
    from blabberseg_ros.nodes.parameters import HEATMAP_TABLE, NODE_NAME
    text = (ROOT / 'config' / f'{family}_node.yaml').read_text(encoding='utf-8')
    own = {} if family == 'clipseg' else {'backend': family}
    assert text == HEATMAP_TABLE.yaml(NODE_NAME, **own), (
        'write it anew: HEATMAP_TABLE.yaml(NODE_NAME, backend=FAMILY)')
    assert yaml.safe_load(text)[NODE_NAME]['ros__parameters']['img_topic']


def test_prompt_file_holds_the_defaults():
    prompts = PromptSet.from_yaml(ROOT / 'config' / 'prompts_dovesei.yaml')
    assert prompts == PromptSet(DEFAULT_POSITIVE, DEFAULT_NEGATIVE, DEFAULT_TEMPLATE)
