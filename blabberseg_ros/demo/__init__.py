# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a simulated flight to the safest ground, and a page about it."""
