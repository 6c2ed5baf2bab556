# SPDX-License-Identifier: Apache-2.0
"""How a graph runs: one file an engine, and the choice between them."""
