# SPDX-License-Identifier: Apache-2.0
"""A worker whose segmenter is a puppet."""

import pytest

from blabberseg_ros.nodes.worker import Worker

from .worker_puppet import OLD, WAIT_S, Puppet


@pytest.fixture
def puppet():
    return Puppet()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def worker(puppet, warnings):
    """Return a worker with the old prompts in use."""
    made = Worker(warnings.append, clock_ns=lambda: 42)
    made.open(lambda: puppet).result(WAIT_S)
    made.set_prompts(OLD).result(WAIT_S)
    puppet.log.clear()
    yield made
    puppet.gate.set()
    assert made.stop(WAIT_S)
