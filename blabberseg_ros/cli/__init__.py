# SPDX-License-Identifier: Apache-2.0
"""The `blabberseg` command: one file a sub-command."""
