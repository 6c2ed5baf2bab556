# SPDX-License-Identifier: Apache-2.0
"""The heatmap node under the name of each model family, whose demonstration bundle it loads."""

from blabberseg_ros.nodes.heatmap_node import main


def lseg() -> int:
    """Run the node with LSeg."""
    return main(backend='lseg')


def fpseg() -> int:
    """Run the node with FPSeg."""
    return main(backend='fpseg')


def segformer() -> int:
    """Run the node with Segformer."""
    return main(backend='segformer')
