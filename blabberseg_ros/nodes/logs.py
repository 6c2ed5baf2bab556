# SPDX-License-Identifier: Apache-2.0
"""The library's log lines, in the log of a node."""

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger

LIBRARY = logging.getLogger('blabberseg_ros')


class NodeLogHandler(logging.Handler):
    """Hands the records of Python's logging to a node's logger, which has levels of its own."""

    def __init__(self, logger: RcutilsLogger) -> None:
        """Hand over to a logger, from INFO on."""
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record. A line for each level, since rclpy binds a level to the line it is at."""
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def log_to_node(logger: RcutilsLogger) -> None:
    """Show what the library logs in a node's log, for the rest of the process."""
    LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(NodeLogHandler(logger))
