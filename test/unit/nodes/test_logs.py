# SPDX-License-Identifier: Apache-2.0
"""What the library logs is seen in a node's log."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import logging
from rclpy.node import Node
from rclpy.utilities import try_shutdown
from blabberseg_ros.nodes.spin import run_node

def log():
    library = logging.getLogger('blabberseg_ros.engines.store')
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        library.log(level, 'building %s at level %d', 'a plan', level)
    try_shutdown()

def create():
    node = Node('one_that_builds')
    node.create_timer(0.01, log)
    return node

run_node(create, None, 1)
"""


def test_lines_of_the_library_are_the_nodes():
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'RCUTILS_COLORIZED_OUTPUT': '0',
             'RCUTILS_CONSOLE_OUTPUT_FORMAT': '{severity} {name}: {message}'})
    assert (done.stdout + done.stderr).splitlines() == [
        f'{severity} one_that_builds: building a plan at level {level}'
        for severity, level in (('INFO', 20), ('WARN', 30), ('ERROR', 40))]
