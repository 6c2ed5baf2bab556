# SPDX-License-Identifier: Apache-2.0
"""What is taken for a bundle."""

import pytest

from blabberseg_ros.fpseg_tools.engine_network import is_bundle


@pytest.mark.parametrize(('network', 'bundle'), [
    ('fpseg_demo', True), ('fpseg_v1.2', True), ('engines/fpseg_v1.2', True),
    ('best.safetensors', False), ('runs/v1.2/mobile_sam.pt', False), ('fpseg.pth', False)])
def test_a_name_with_a_dot_is_a_bundle_unless_it_is_that_of_a_file(network, bundle):
    assert is_bundle(network) == bundle
