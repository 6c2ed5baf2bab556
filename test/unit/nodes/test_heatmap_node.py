# SPDX-License-Identifier: Apache-2.0
"""Pieces of the heatmap node that need no live one."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from blabberseg_ros.nodes import heatmap_node
from blabberseg_ros.nodes.heatmap_node import HeatmapNode
from blabberseg_ros.nodes.work import PromptChange
from blabberseg_ros.prompt_cache import PromptReport


@pytest.fixture
def node(monkeypatch):
    """Return an active node whose worker does at once what it is asked."""
    initialised = not rclpy.ok()
    if initialised:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    monkeypatch.setattr(heatmap_node, 'PROGRESS_INTERVAL_S', 0.0)
    made = HeatmapNode()
    made._values = replace(made._values, load_timeout_s=0.0)
    made._worker.stop(10.0)
    made._worker = InstantWorker()
    assert made.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert made.trigger_activate() == TransitionCallbackReturn.SUCCESS
    yield made
    made.destroy_node()
    if initialised:
        rclpy.shutdown()


class InstantWorker:
    """Answers everything, except what it is told to leave alone."""

    def __init__(self):
        self.hangs = False
        self.prompts = None

    def __getattr__(self, name):
        """Return a method that answers None."""
        return lambda *_: self.answer(None)

    def set_prompts(self, prompts):
        report = PromptReport(0, 0, (), (), ("'lawn' stands for grass",), (), 0.0)
        return self.answer(PromptChange(prompts, report, 0))

    def answer(self, value):
        future = Future()
        if not self.hangs:
            future.set_result(value)
        return future


def streams(node):
    return next(publisher for publisher in node.publishers
                if publisher.topic_name.endswith('/heatmap')).is_activated


def test_a_deactivation_that_fails_leaves_the_node_active(node):
    node._worker.hangs = True
    assert node.trigger_deactivate() == TransitionCallbackReturn.FAILURE
    assert node._state_machine.current_state[1] == 'active'
    assert node.active
    assert streams(node)
    node._worker.hangs = False
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert node._state_machine.current_state[1] == 'inactive'
    assert not node.active
    assert not streams(node)


def test_a_shutdown_that_fails_is_one_all_the_same(node):
    node._worker.hangs = True
    node.trigger_shutdown()
    assert node._state_machine.current_state[1] == 'finalized'
    assert not node.active


def test_how_prompts_were_read_is_logged_at_the_start(node, monkeypatch):
    lines = []
    monkeypatch.setattr(
        node, 'get_logger', lambda: SimpleNamespace(info=lines.append, warning=lines.append))
    node.trigger_deactivate()
    node.trigger_activate()
    assert any("'lawn' stands for grass" in line for line in lines)
