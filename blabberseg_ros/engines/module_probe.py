# SPDX-License-Identifier: Apache-2.0
"""Whether a library is here and works, found out by importing it."""

from importlib import import_module


def problem_with(module: str) -> str | None:
    """Return what stands in the way of importing a module, or None.

    Being found is not enough: a wheel for another C library or NumPy is found and fails to load.

    Returns:
        The rest of a sentence that begins with the module's name.
    """
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return 'is not installed'
        return f'is installed and cannot be imported ({error})'
    return None
