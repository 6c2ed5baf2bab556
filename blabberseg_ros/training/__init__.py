# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration bundle: a small CLIPSeg that has only ever seen our own world."""
