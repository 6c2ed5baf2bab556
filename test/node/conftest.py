# SPDX-License-Identifier: Apache-2.0
"""Live nodes for the tests in this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from live_nodes import live, ros, segmenter, start_node

__all__ = ['live', 'ros', 'segmenter', 'start_node']
