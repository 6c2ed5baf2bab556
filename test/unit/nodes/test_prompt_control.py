# SPDX-License-Identifier: Apache-2.0
"""A change of prompts whose caller gives up."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from blabberseg_ros.errors import EngineError
from blabberseg_ros.nodes import prompt_control
from blabberseg_ros.nodes.prompt_control import PromptControl
from blabberseg_ros.prompts import default_prompts


class InUse(Future):
    """A change that comes into use in the moment in which its caller gives up."""

    def cancel(self):
        self.set_running_or_notify_cancel()
        self.set_result('change')
        return False


def change_prompts(future):
    control = SimpleNamespace(_submit=lambda prompts: future)
    return PromptControl._change(control, default_prompts())


def test_prompts_that_are_not_encoded_in_time_are_given_up(monkeypatch):
    monkeypatch.setattr(prompt_control, 'ENCODE_TIMEOUT_S', 0.0)
    future = Future()
    with pytest.raises(EngineError, match='not in use'):
        change_prompts(future)
    assert future.cancelled()


def test_prompts_that_came_into_use_are_not_said_to_be_out_of_use(monkeypatch):
    monkeypatch.setattr(prompt_control, 'ENCODE_TIMEOUT_S', 0.0)
    assert change_prompts(InUse()) == 'change'
