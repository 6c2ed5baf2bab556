# SPDX-License-Identifier: Apache-2.0
"""Install blabberseg_ros, with pip or with colcon."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'blabberseg_ros'
ROOT = Path(__file__).resolve().parent

TENSORRT_RTX = [
    'tensorrt-rtx-cu13-libs==1.7.*; platform_machine == "x86_64"',
    'tensorrt-rtx-cu13-bindings==1.7.*; platform_machine == "x86_64"',
]
# Version bounds: lower ones are the oldest with the functions that are called, upper ones keep
# out a known break. OpenCV 5 breaks cv_bridge 4.1, and so does NumPy 2 where cv_bridge was built
# for NumPy 1 (ROS 2 Humble, Jazzy from apt): there, install with `numpy<2` as constraint.
EXTRAS = {
    # One of these two, never both: they install into the same folder and overwrite each other.
    'cpu': ['onnxruntime>=1.18'],
    'gpu': ['onnxruntime-gpu>=1.24'],
    # OpenCV, where apt's python3-opencv is absent (a robot with ROS 2 has it).
    'opencv': ['opencv-python-headless>=4.5,<5'],
    # Import, export and training of models.
    'torch': [
        'torch>=2.7',
        'open_clip_torch>=3.0,<4',
        'onnx>=1.16',
        'onnx_ir>=0.1.10',
        'onnxscript>=0.5.4',
        'huggingface_hub>=0.24',
        'regex',
    ],
    # Engines of NVIDIA's TensorRT. A Jetson has it from JetPack, not from pip.
    'tensorrt': ['tensorrt>=10,<12'],
    'pycuda': ['pycuda>=2024.1'],
    'tensorrt-rtx': TENSORRT_RTX,
    'test': [
        'pytest>=7',
        'hypothesis>=6.100',
        'transformers>=5,<6',
        'pillow>=10',
        # The builder works without a GPU: it proves that each exported graph parses and builds.
        *TENSORRT_RTX,
    ],
    'lint': ['ruff>=0.9', 'mypy>=1.11', 'types-PyYAML'],
}


def version() -> str:
    """Return the version from the package's source, without importing it."""
    source = (ROOT / NAME / '__init__.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '(.+)'$", source, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError(f'{NAME}/__init__.py has no line __version__ = ...')
    return found.group(1)


def shared_files(folder: str) -> list[tuple[str, list[str]]]:
    """List the files of a folder, recursively, as setuptools' data_files.

    Args:
        folder: path relative to this file. It may be absent or empty.

    Returns:
        Pairs of a target folder below share/ and the files that go there.
    """
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / folder).rglob('*')):
        relative = path.relative_to(ROOT)
        if path.is_file() and not any(part.startswith(('.', '__')) for part in relative.parts):
            target = f'share/{NAME}/{relative.parent.as_posix()}'
            files.setdefault(target, []).append(relative.as_posix())
    return list(files.items())


setup(
    name=NAME,
    version=version(),
    description='Landing heatmaps for drones from open-vocabulary segmentation, as ROS 2 nodes',
    author='blabberseg_ros maintainers',
    author_email='maintainers@blabberseg-ros.invalid',
    maintainer='blabberseg_ros maintainers',
    maintainer_email='maintainers@blabberseg-ros.invalid',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={'': ['py.typed', '*.html', '*.css', '*.js', '*.svg', '*.xml']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml', 'LICENSE', 'THIRD_PARTY.md']),
        *shared_files('config'),
        *shared_files('engines'),
        *shared_files('launch'),
    ],
    # ROS packages are not named here: they come from apt or from ROS wheels, never by this name.
    install_requires=[
        'ftfy>=6.1',
        'numpy>=1.23',
        'pyyaml>=5.4',
        'safetensors>=0.4',
        'tokenizers>=0.19',
        'tqdm>=4.60',
    ],
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': [
            'blabberseg = blabberseg_ros.cli.main:main',
            'clipseg_node = blabberseg_ros.nodes.executables:clipseg_node',
            # The same node with another family's model.
            'lseg_node = blabberseg_ros.nodes.executables:lseg_node',
            'fpseg_node = blabberseg_ros.nodes.executables:fpseg_node',
            'segformer_node = blabberseg_ros.nodes.executables:segformer_node',
            # DOVESEI's name for it, so that its launch files change one word.
            'getlandingheatmap_service = blabberseg_ros.nodes.executables:clipseg_node',
            'aerial_camera = blabberseg_ros.nodes.executables:aerial_camera',
            'demo_client = blabberseg_ros.nodes.executables:demo_client',
        ],
    },
    zip_safe=True,
)
