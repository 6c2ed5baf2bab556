# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can cause and can fix.

Each message says what happened, what it means and what to do. Everything else that is raised in
this package is a bug.
"""


class BlabbersegError(Exception):
    """Base of every refusal that is meant for a user."""


class PromptError(BlabbersegError):
    """A prompt, a prompt set or a template cannot be used."""


class ImageError(BlabbersegError):
    """An image cannot be read or segmented."""


class BundleError(BlabbersegError):
    """A model on disk, or a checkpoint to import, is missing, damaged or of the wrong kind."""


class EngineError(BlabbersegError):
    """A graph cannot be run: engine not installed, device absent, wrong inputs, bad output."""


class NotFiniteError(EngineError):
    """A network answered NaN or infinity; nothing that it says about the frame can be trusted."""


class Cancelled(EngineError):
    """Work was stopped because its caller has lost interest."""


class ParityError(EngineError):
    """An engine does not give the answers of the network that it runs."""


class ParameterError(BlabbersegError):
    """An option is out of its bounds."""


def reason_of(error: Exception) -> str:
    """Return what a user is told about an error: its own words, or that it is a bug."""
    if isinstance(error, BlabbersegError):
        return str(error)
    return f'internal error, please report it: {error!r}'
