# SPDX-License-Identifier: Apache-2.0
"""How fast this machine answers, beside the programs that this package replaces."""
