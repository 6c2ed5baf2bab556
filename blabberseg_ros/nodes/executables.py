# SPDX-License-Identifier: Apache-2.0
"""The executables of the package: signals first, then the node.

Importing rclpy, OpenCV and an engine takes up to seconds, in which SIGINT would be a traceback and
SIGTERM the code of a crash. Only the standard library is imported here.
"""

import importlib
import os
import signal
import sys


def clipseg_node() -> int:
    """Run the heatmap node with the bundle's family, CLIPSeg by default."""
    return _run('blabberseg_ros.nodes.heatmap_node')


def lseg_node() -> int:
    """Run the heatmap node with LSeg, whose demonstration bundle it loads by default."""
    return _run('blabberseg_ros.nodes.heatmap_node', backend='lseg')


def fpseg_node() -> int:
    """Run the heatmap node with FPSeg."""
    return _run('blabberseg_ros.nodes.heatmap_node', backend='fpseg')


def segformer_node() -> int:
    """Run the heatmap node with Segformer."""
    return _run('blabberseg_ros.nodes.heatmap_node', backend='segformer')


def aerial_camera() -> int:
    """Run the simulated drone."""
    return _run('blabberseg_ros.nodes.aerial_camera')


def demo_client() -> int:
    """Fly the simulated drone."""
    return _run('blabberseg_ros.demo.client')


def _run(module: str, **options: str) -> int:
    """Import a node and run its `main`; `run_node` takes the signals over.

    Until then nothing is open, so that the process may end at once. An exception would not do: it
    can come up anywhere in an import, and be taken for a failure of that.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    code: int = importlib.import_module(module).main(**options)
    return code


if __name__ == '__main__':
    # `python -m blabberseg_ros.nodes.executables NAME`, where nothing is installed.
    sys.exit({each.__name__: each for each in (
        clipseg_node, lseg_node, fpseg_node, segformer_node, aerial_camera, demo_client,
    )}[sys.argv[1]]())
