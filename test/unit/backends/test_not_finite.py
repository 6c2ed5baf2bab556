# SPDX-License-Identifier: Apache-2.0
"""One NaN in an image's code, wherever it is: the frame is refused, on torch and ONNX Runtime."""

import numpy as np
import pytest

from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import NotFiniteError
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.segmenter import Segmenter


@pytest.mark.parametrize('kind', [OnnxRuntimeCpu, TorchCpu])
@pytest.mark.parametrize('family', ['clipseg', 'lseg', 'fpseg', 'segformer'])
def test_a_single_nan_refuses_the_frame(make_random_bundle, monkeypatch, family, kind):
    bundle = load_bundle(make_random_bundle(family))
    image = moving_frames(1, (80, 60))[0]
    with Segmenter(backend_class(family)(bundle, kind())) as segmenter:
        prompts = segmenter.backend.example_prompts()
        encode, random = segmenter.backend.encode_image, np.random.default_rng(0)

        def broken(image):
            code = encode(image)
            part = code['code'] if isinstance(code, dict) else code
            poisoned = np.array(part)
            poisoned.flat[random.integers(poisoned.size)] = np.nan
            return {**code, 'code': poisoned} if isinstance(code, dict) else poisoned

        assert segmenter.segment(image, prompts).mask.shape == (60, 80)
        segmenter.forget()
        monkeypatch.setattr(segmenter.backend, 'encode_image', broken)
        for _ in range(5):
            with pytest.raises(NotFiniteError):
                segmenter.segment(image, prompts)
