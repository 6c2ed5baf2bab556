# SPDX-License-Identifier: Apache-2.0
"""Landing heatmaps from open-vocabulary segmentation, as a ROS-free library and ROS 2 nodes.

The one entry point of the library is :class:`blabberseg_ros.segmenter.Segmenter`. Nothing is
imported here: ``import blabberseg_ros`` works without ROS, torch, ONNX Runtime or CUDA.
"""

__version__ = '0.1.0'
