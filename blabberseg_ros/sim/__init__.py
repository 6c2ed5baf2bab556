# SPDX-License-Identifier: Apache-2.0
"""A procedural aerial world and a camera to fly over it."""
