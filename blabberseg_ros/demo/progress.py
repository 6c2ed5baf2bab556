# SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal: one line that is rewritten, or plain lines in a log."""

import shutil
import sys
import time
from typing import TextIO

_PLAIN_INTERVAL_S = 2.0


class Progress:
    """Shows how far something is.

    Args:
        stream: where to; a terminal gets one line that is rewritten.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Show nothing yet."""
        self._stream = stream or sys.stdout
        self._rewrites = self._stream.isatty()
        self._shown_s = float('-inf')
        self._open_line = False

    def update(self, line: str) -> None:
        """Show the present state."""
        if self._rewrites:
            columns = shutil.get_terminal_size().columns
            self._stream.write('\r\x1b[K' + line[:columns - 1])
            self._open_line = True
        elif time.monotonic() - self._shown_s >= _PLAIN_INTERVAL_S:
            self._shown_s = time.monotonic()
            self._stream.write(line + '\n')
        self._stream.flush()

    def note(self, line: str) -> None:
        """Show something that stays."""
        if self._open_line:
            self._stream.write('\r\x1b[K')
            self._open_line = False
        self._stream.write(line + '\n')
        self._stream.flush()
