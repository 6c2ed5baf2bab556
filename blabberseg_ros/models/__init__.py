# SPDX-License-Identifier: Apache-2.0
"""Networks in torch, their importers from published checkpoints and their exports to graphs."""
