# SPDX-License-Identifier: Apache-2.0
"""A wait that cannot end well says why."""

import pytest
from harness import Peer
from rclpy.task import Future


@pytest.fixture
def dying_peer():
    """Return a peer, without a node, whose thread dies of its first callback."""
    def fail():
        raise ZeroDivisionError

    peer = Peer(None)
    peer.node.create_timer(0.01, fail)
    yield peer
    peer.close()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('wait', [
    lambda peer: peer.finish(Future()), lambda peer: peer.diagnostics()])
def test_waiting_for_a_dead_peer_raises_what_it_died_of(dying_peer, wait):
    with pytest.raises(AssertionError, match='nothing can arrive') as caught:
        wait(dying_peer)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
