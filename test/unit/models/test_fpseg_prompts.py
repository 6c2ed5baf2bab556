# SPDX-License-Identifier: Apache-2.0
"""Files of classes: what is written is read, and nothing else is taken for one."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.fpseg_prompts import ClassPrompt, read_prompts, write_prompts


def prompt(name, tokens=3, width=8):
    generator = np.random.default_rng(len(name))
    return ClassPrompt(name, generator.standard_normal((tokens, width), np.float32),
                       generator.standard_normal(width, np.float32))


def test_classes_of_different_sizes_survive(tmp_path):
    path = tmp_path / 'prompts.safetensors'
    written = (prompt('road'), prompt('Dächer', tokens=5), prompt('traffic light', tokens=1))
    write_prompts(path, written)
    read = read_prompts(path)
    assert [each.name for each in read] == ['road', 'Dächer', 'traffic light']
    for ours, theirs in zip(read, written, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(ours.dense, theirs.dense)


@pytest.mark.parametrize(('names', 'message'), [
    (('road', ' ROAD'), 'twice'), (('tree', 'Trees'), "'Trees' is there twice.*is 'tree'"),
    (('traffic light', 'traffic-lights'), 'twice'), (('  ',), 'no name'), (('--',), 'no name'),
    ((), 'no class')])
def test_names_that_cannot_be_told_apart_are_refused(tmp_path, names, message):
    with pytest.raises(BundleError, match=message):
        write_prompts(tmp_path / 'prompts.safetensors', [prompt(name) for name in names])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / 'prompts.safetensors'
    with pytest.raises(BundleError, match='cannot be read'):
        read_prompts(path)
    path.write_bytes(b'not a file of prompts')
    with pytest.raises(BundleError, match='cannot be read'):
        read_prompts(path)
    save_file({'tokens.0': np.zeros((2, 3), np.float32)}, path)
    with pytest.raises(BundleError, match='not a file of FPSeg prompts'):
        read_prompts(path)


@pytest.mark.parametrize('tensors', [
    {'tokens.0': np.zeros((2, 3), np.float32)},
    {'tokens.0': np.zeros((2, 3), np.float32), 'dense.0': np.zeros(4, np.float32)}])
def test_damaged_classes_are_refused(tmp_path, tensors):
    path = tmp_path / 'prompts.safetensors'
    save_file(tensors, path, {'format': 'fpseg-prompts/1', 'class_names': '["road"]'})
    with pytest.raises(BundleError, match=str(path)):
        read_prompts(path)
