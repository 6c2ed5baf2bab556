# SPDX-License-Identifier: Apache-2.0
"""`blabberseg compare`."""

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
