# SPDX-License-Identifier: Apache-2.0
"""Fixtures with live nodes, for the conftest.py of each folder that wants them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rclpy
from harness import NodeProcess, Peer
from rclpy.signals import SignalHandlerOptions

from blabberseg_ros.backends.registry import FAMILIES, backend_class
from blabberseg_ros.backends.text import TextBackend
from blabberseg_ros.nodes.spin import REFUSED_TO_START
from blabberseg_ros.segmenter import Segmenter

# Families with a text tower, which counts its runs and cuts long prompts.
READING = [family for family in FAMILIES if issubclass(backend_class(family), TextBackend)]
# A report a tenth of a second, so that tests need not wait for the next one.
FAST_DIAGNOSTICS = {'diagnostics_period_s': 0.1}


@pytest.fixture(scope='session', autouse=True)
def ros() -> Iterator[None]:
    """Initialise rclpy in this process, unless another folder's fixture has done it."""
    if not rclpy.ok():
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    yield
    rclpy.try_shutdown()


@contextmanager
def starter(bundle: Path, family: str, folders: pytest.TempPathFactory
            ) -> Iterator[Callable[..., Peer]]:
    """Give a function that starts a node and its peer; all end with the context."""
    peers: list[Peer] = []

    def start(environment: dict[str, str] | None = None, **parameters: Any) -> Peer:
        folder = folders.mktemp('node')
        parameters = {'bundle': bundle, 'cache_dir': folder / 'cache', **FAST_DIAGNOSTICS,
                      **parameters}
        peers.append(Peer(NodeProcess(folder / 'log.txt', environment, family, **parameters)))
        return peers[-1]

    yield start
    codes = [peer.process.stop() for peer in peers]
    for peer in peers:
        peer.close()
    assert set(codes) <= {0, REFUSED_TO_START}


@pytest.fixture
def start_node(random_bundle: Path, family: str, tmp_path_factory: pytest.TempPathFactory
               ) -> Iterator[Callable[..., Peer]]:
    """Return a function that starts a node of the test's own; parameters by keyword.

    Not together with `live`: two nodes would answer to one name.
    """
    with starter(random_bundle, family, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope='module')
def live(random_bundle: Path, family: str, tmp_path_factory: pytest.TempPathFactory
         ) -> Iterator[Peer]:
    """Return the peer of the module's own active node."""
    with starter(random_bundle, family, tmp_path_factory) as start:
        peer = start()
        peer.wait_active()
        yield peer


@pytest.fixture(scope='session')
def segmenter(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory
              ) -> Iterator[Segmenter]:
    """Return the same model, run directly."""
    with Segmenter.open(random_bundle, cache_dir=tmp_path_factory.mktemp('direct')) as opened:
        yield opened
