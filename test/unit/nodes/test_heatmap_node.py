# SPDX-License-Identifier: Apache-2.0
"""Pieces of the heatmap node that need no live one."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from blabberseg_ros.errors import EngineError
from blabberseg_ros.nodes import heatmap_node
from blabberseg_ros.nodes.heatmap_node import HeatmapNode
from blabberseg_ros.prompts import default_prompts


class InUse(Future):
    """A change that comes into use in the moment in which its caller gives up."""

    def cancel(self):
        self.set_running_or_notify_cancel()
        self.set_result('change')
        return False


def change_prompts(future):
    node = SimpleNamespace(_submit_prompts=lambda prompts: future)
    return HeatmapNode._change_prompts(node, default_prompts())


def test_prompts_that_are_not_encoded_in_time_are_given_up(monkeypatch):
    monkeypatch.setattr(heatmap_node, 'ENCODE_TIMEOUT_S', 0.0)
    future = Future()
    with pytest.raises(EngineError, match='not in use'):
        change_prompts(future)
    assert future.cancelled()


def test_prompts_that_came_into_use_are_not_said_to_be_out_of_use(monkeypatch):
    monkeypatch.setattr(heatmap_node, 'ENCODE_TIMEOUT_S', 0.0)
    assert change_prompts(InUse()) == 'change'
