# SPDX-License-Identifier: Apache-2.0
"""The torch-CUDA engine on the CPU, where its graphs run their functions anew.

Prompts with padding, and frames that a device answers for before the host knows them for sure.
"""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines import (
    cuda_kernels,
    torch_capture,
    torch_cuda,
    torch_family,
    torch_fpseg,
    torch_stages,
)
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.errors import Cancelled
from blabberseg_ros.parity.gate import Shapes, admit
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.parity.store import ParityStore
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.resampling import read_only
from blabberseg_ros.segmenter import Segmenter

COUNTS = (2, 3, 5, 7, 13, 17)
SIZE = (40, 56)


class CpuGraph(torch_cuda._CapturedGraph):
    """A captured graph whose buffers are in the CPU's memory."""

    _device = 'cpu'

    def __init__(self, function, specs, feeds, shapes, to_host):
        made.append(shapes)
        self._is_spoiled = False
        super().__init__(function, specs, feeds, shapes, to_host)

    def _feed(self, feeds):
        if not self._is_spoiled:
            self._is_spoiled = True
            for each in (*self._buffers.values(), *map(torch.from_numpy, self._staging.values())):
                each.fill_(float('nan') if each.is_floating_point() else 99)
        super()._feed(feeds)


class Replay:
    """Runs a function anew into its first outputs."""

    def __init__(self, function):
        self.function, self.outputs = function, function()

    def replay(self):
        with torch.inference_mode():
            for name, value in self.function().items():
                self.outputs[name].copy_(value)


def capture(function):
    """Return what stands in for a captured graph, and its outputs."""
    with torch.inference_mode():
        graph = Replay(function)
    return graph, graph.outputs


class Event:
    """Notes when something waits for the last run of a graph."""

    def __init__(self):
        self.log = []

    def record(self):
        self.log.append('run')

    def synchronize(self):
        self.log.append('wait')


made: list[dict[str, tuple[int, ...]]] = []


def cut_mask(probability, thresholds, wanted):
    """Return what the kernels of `torch_family.cut_mask` do."""
    above = (probability.flatten()[:, None] > thresholds[:100]).sum(0)
    enough = (above >= wanted[0]) & (torch.arange(100) < wanted[1])
    index = int(enough.int().argmax()) if enough.any() else 100
    return {'probability': probability, 'mask': (probability > thresholds[index]).byte() * 255,
            'found': torch.tensor([index, int((~probability.isfinite()).sum())])}


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Run what is written for CUDA on the CPU, each family by its own stages."""
    made.clear()
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.nn.Module, 'cuda', lambda module: module)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: stream)
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch_capture, 'capture', capture)
    monkeypatch.setattr(cuda_kernels, 'copy_bytes', lambda source, target: target.copy_(source))
    monkeypatch.setattr(torch_cuda, '_CapturedGraph', CpuGraph)
    monkeypatch.setattr(torch_cuda, '_STAGES', {})
    monkeypatch.setattr(torch_family, 'cut_mask', cut_mask)


@pytest.fixture(params=['clipseg', 'lseg', 'fpseg'])
def bundle(request, make_random_bundle):
    return load_bundle(make_random_bundle(request.param))


def kind_of(bundle):
    # The other families' stages are written in `torch_family` already.
    return TorchCuda('fp32', compiled=False)


def opened(bundle, kind, **arguments):
    return Segmenter(backend_class(bundle.manifest.family)(bundle, kind), **arguments)


def prompts_of(bundle, count):
    """Return as many prompts, each of one row of the logits."""
    if bundle.manifest.family == 'fpseg':
        names = [*opened(bundle, TorchCpu()).backend.class_names]
        return PromptSet(tuple(names[:1]), tuple(names[1:count]))
    return PromptSet(('grass',), tuple(f'roof {index}' for index in range(count - 1)))


def counts_for(bundle):
    if bundle.manifest.family == 'fpseg':
        most = len(opened(bundle, TorchCpu()).backend.class_names)
        return tuple(count for count in COUNTS if count <= most)
    return COUNTS


def picture(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_answers_with_padding_are_those_without(bundle):
    with opened(bundle, kind_of(bundle)) as padded, opened(bundle, TorchCpu()) as plain:
        assert padded.backend._answers == ('decoder' in bundle.manifest.graphs)
        for count in counts_for(bundle):
            prompts = prompts_of(bundle, count)
            found, wanted = (each.segment(picture(), prompts) for each in (padded, plain))
            np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-5)
            assert np.mean(found.mask != wanted.mask) < 1e-3
            assert found.threshold == pytest.approx(wanted.threshold, abs=0.02)


def test_logits_and_their_fusion_with_padding_are_those_without(bundle):
    """Back-ends decode and fuse apart where the time is limited, and merge for label maps."""
    with opened(bundle, kind_of(bundle)) as padded, opened(bundle, TorchCpu()) as plain:
        for count in counts_for(bundle):
            prompts = prompts_of(bundle, count)
            found, wanted = (_decoded(each.backend, prompts) for each in (padded, plain))
            assert found[0].shape[0] == count
            for ours, theirs in zip(found, wanted, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4)


def _decoded(backend, prompts):
    from blabberseg_ros.backends.values import Query
    from blabberseg_ros.heatmap import FusionOptions

    codes = backend.encode_prompts(backend.texts(prompts))
    logits = backend.decode(backend.encode_image(picture()), codes)
    query = Query(prompts.is_positive, FusionOptions(), SIZE)
    results = [backend.to_host(logits), backend.fuse(logits, codes, query)]
    if 'merge' in backend.stages:
        # Every logit below that of the padding where it is zero: no class is seen.
        for shift in (0, 1e3):
            merged = backend.engine('merge').infer({'logits': results[0] - np.float32(shift)})
            results.append(backend.engine('merge').to_host(merged['classes'])[0])
    return results


def test_numbers_of_one_length_share_a_graph_and_fewer_follow_more(bundle):
    with opened(bundle, kind_of(bundle)) as padded, opened(bundle, TorchCpu()) as plain:
        image = picture()
        for count in (6, 8):
            padded.segment(image, prompts_of(bundle, count))
        built = _answers()
        for count in (7, 8, 5, 6, 5, 7):
            prompts = prompts_of(bundle, count)
            np.testing.assert_allclose(padded.segment(image, prompts).probability,
                                       plain.segment(image, prompts).probability, atol=1e-5)
        assert _answers() == built == 2


def _answers():
    return sum('thresholds' in shapes for shapes in made)


@pytest.mark.parametrize('family', ['clipseg', 'lseg'])
def test_arrays_that_may_change_are_padded_too(make_random_bundle, family):
    """What is not known to stay the same goes through pinned memory."""
    bundle = load_bundle(make_random_bundle(family))
    with opened(bundle, kind_of(bundle)) as padded, opened(bundle, TorchCpu()) as plain:
        for count in (8, 7, 5, 6):
            texts = prompts_of(bundle, count).texts
            for ours, theirs in zip(padded.backend.encode_prompts(texts),
                                    plain.backend.encode_prompts(texts), strict=True):
                for (_, got), (_, wanted) in zip(ours.arrays, theirs.arrays, strict=True):
                    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_number_of_the_same_length_costs_neither_a_comparison_nor_a_graph(bundle, tmp_path):
    store, asked = ParityStore(tmp_path), []

    def check(backend, shapes=None):
        asked.append(shapes)
        return admit(backend, shapes, store)

    with opened(bundle, kind_of(bundle), check=check) as segmenter:
        image = picture()
        segmenter.segment(image, prompts_of(bundle, 6))
        assert asked == [None, Shapes(SIZE[1], SIZE[0], 5)]
        built = len(made)
        for count in (5, 6, 5):
            segmenter.segment(image, prompts_of(bundle, count))
        assert (len(asked), len(made)) == (2, built)
        segmenter.segment(image, prompts_of(bundle, 7))
        assert asked[2:] == [Shapes(SIZE[1], SIZE[0], 7)]
        assert segmenter.engine_name == 'torch-cuda'


def test_an_engine_that_takes_over_is_compared_for_what_it_builds_itself(make_random_bundle):
    """The shapes that stood for others on the engine before may be new to the next."""
    bundle = load_bundle(make_random_bundle('clipseg'))
    asked = []

    def check(backend, shapes=None):
        asked.append((backend.kind.name, shapes and shapes.rows))
        if shapes and backend.kind.name == 'torch-cuda':
            raise torch_cuda.EngineError('wrong')

    other = TorchCpu()
    other.per_shape, other.name = True, 'other'
    segmenter = opened(bundle, kind_of(bundle), check=check,
                       others=[backend_class('clipseg')(bundle, other)])
    with segmenter:
        for count in (6, 5):
            segmenter.segment(picture(), prompts_of(bundle, count))
    assert asked == [('torch-cuda', None), ('torch-cuda', 5), ('other', None), ('other', 6),
                     ('other', 5)]


@pytest.mark.parametrize(('count', 'padding'), [(2, 0), (5, 1), (17, 7)])
def test_clipseg_without_the_fused_head(make_random_bundle, count, padding):
    bundle = load_bundle(make_random_bundle('clipseg'))
    stages = object.__new__(torch_stages.CudaStages)
    stages.model, stages._head = torch_stages.load_clipseg(bundle), None
    stages._autocast = contextlib.nullcontext
    generator = torch.Generator().manual_seed(0)
    config = stages.model.config
    code = torch.randn((3, config.tokens, config.reduce_dim), generator=generator)
    pair = torch.randn((2, count, config.reduce_dim), generator=generator)
    positive = (torch.arange(count) % 2).float()
    with torch.inference_mode():
        wanted = stages._positive_probability(code, *pair, positive)
        found = stages._positive_probability(
            code, *torch.cat((pair, torch.zeros(2, padding, config.reduce_dim)), 1),
            torch.cat((positive, -torch.ones(padding))))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(('count', 'padding'), [(1, 0), (5, 1), (7, 3)])
def test_fpseg_with_its_decoder_in_one_type(make_random_bundle, count, padding):
    bundle = load_bundle(make_random_bundle('fpseg'))
    stages = torch_fpseg.CudaStages(bundle, 'fp32', compiled=False)
    stages._prepare_decoder(stages._stages['decoder'].module.model, compiled=False)
    function, inputs, _ = stages.stage('answer')
    generator = torch.Generator().manual_seed(0)
    feeds = {spec.name: torch.randn([count if length == 'prompts' else 9 if isinstance(length, str)
                                     else length for length in spec.shape], generator=generator)
             for spec in inputs}
    feeds |= {'positive': (torch.arange(count) % 2).float(), 'wanted': torch.tensor([5, 100]),
              'thresholds': torch.linspace(1, 0, 101)}
    padded = {**feeds, 'positive': torch.cat((feeds['positive'], -torch.ones(padding)))}
    for name in ('tokens', 'dense', 'bias'):
        padded[name] = torch.cat((feeds[name], torch.zeros(padding, *feeds[name].shape[1:])))
    with torch.inference_mode():
        wanted, found = function(**feeds), function(**padded)
    torch.testing.assert_close(found['probability'], wanted['probability'], atol=1e-5, rtol=1e-4)
    assert torch.equal(found['found'], wanted['found'])


LARGE = torch_cuda._SMALL_BYTES // 4 + 1
SPECS = {name: TensorSpec(name, 'uint8' if name == 'frame' else 'float32', ('n',))
         for name in ('frame', 'code', 'prompts', 'matrix')}


def sums(**inputs):
    """Return the sum of each input."""
    return {name: value.double().sum()[None] for name, value in inputs.items()}


def replayed(graph, feeds):
    return {name: value.item() for name, value in graph.replay(feeds).items()}


@pytest.fixture
def feeds():
    """Return one input of each kind: a frame, a value, prompts, and a large matrix that stays."""
    return {'frame': np.full(5, 2, np.uint8), 'code': torch.full((3,), 4.0),
            'prompts': read_only(np.full(2, 0.5, np.float32)),
            'matrix': read_only(np.ones(LARGE, np.float32))}


@pytest.fixture
def graph(feeds):
    return CpuGraph(sums, SPECS, feeds,
                    {name: (4,) if name == 'prompts' else tuple(value.shape)
                     for name, value in feeds.items()}, to_host=('frame', 'code'))


def test_a_graph_sends_what_changes_and_keeps_what_stays(graph, feeds, monkeypatch):
    assert graph._staging.keys() == {'frame', 'prompts'}
    copied, copy = [], graph._copy
    monkeypatch.setattr(
        graph, '_copy', lambda name, value: copied.append(name) or copy(name, value))
    sum_of = {'frame': 10, 'code': 12, 'prompts': 1, 'matrix': LARGE}
    for _ in range(2):
        assert replayed(graph, feeds) == sum_of
    assert copied == []
    feeds['frame'][:] = 3  # the same array holds the next frame
    feeds['prompts'] = read_only(np.full(3, 2, np.float32))
    assert replayed(graph, feeds) == {**sum_of, 'frame': 15, 'prompts': 6}
    assert copied == []
    feeds['prompts'] = read_only(np.ones(1, np.float32))
    feeds['code'] = torch.ones(3)
    feeds['matrix'] = read_only(np.full(LARGE, 2, np.float32))
    for _ in range(2):
        assert replayed(graph, feeds) == {
            'frame': 15, 'code': 3, 'prompts': 1, 'matrix': 2 * LARGE}
    assert copied == ['code', 'matrix']


def test_a_value_may_come_from_elsewhere_than_the_first_did(graph, feeds):
    feeds = {'frame': torch.ones(5, dtype=torch.uint8), 'code': np.ones(3, np.float32),
             'prompts': torch.ones(1), 'matrix': torch.ones(LARGE)}
    for _ in range(2):
        assert replayed(graph, feeds) == {'frame': 5, 'code': 3, 'prompts': 1, 'matrix': LARGE}
    feeds['code'][:] = 2
    assert replayed(graph, feeds)['code'] == 6


def test_the_pinned_block_is_written_when_the_last_run_has_sent_it(graph, feeds, monkeypatch):
    log, stage, replay = graph._done.log, graph._stage, graph._graph.replay
    log.clear()
    monkeypatch.setattr(
        graph, '_stage', lambda name, value: log.append(name) or stage(name, value))
    monkeypatch.setattr(graph._graph, 'replay', lambda: log.append('replay') or replay())
    graph.replay(feeds)
    assert log == ['wait', 'frame', 'replay', 'run']
    del log[:], feeds['frame']
    graph.replay(feeds)  # nothing else has changed: the device need not be waited for
    assert log == ['replay', 'run']
    log.clear()
    graph.replay({**feeds, 'prompts': read_only(np.ones(2, np.float32))})
    assert log == ['wait', 'prompts', 'replay', 'run']


def activated(bundle):
    engine = kind_of(bundle).create(bundle, 'answer')
    engine.activate()
    return engine


def test_a_mask_is_read_when_it_has_arrived(make_random_bundle, monkeypatch):
    """What a graph sends to the host is there once the device has been waited for."""
    mask, found = np.zeros((2, 3), np.uint8), np.zeros(2, np.int32)

    def arrive():
        mask.fill(255)
        found.fill(7)

    engine = activated(load_bundle(make_random_bundle('clipseg')))
    monkeypatch.setattr(engine, '_replayed', SimpleNamespace(wait=arrive))
    results = engine.to_host(mask, found)
    mask.fill(0), found.fill(0)  # the next frame's
    assert [result.min() for result in results] == [255, 7]


def test_values_of_the_device_and_of_the_host_come_in_the_order_asked_for(make_random_bundle):
    engine = activated(load_bundle(make_random_bundle('clipseg')))
    device = [torch.full((2,), value) for value in (1.0, 2.0)]
    host = np.full(2, 3.0)
    for values, wanted in (((device[0], host, device[1]), [1, 3, 2]),
                           ((host, device[1]), [3, 2]), ((device[1],), [2])):
        assert [result.tolist() for result in engine.to_host(*values)] == [
            [value] * 2 for value in wanted]


@pytest.fixture
def device(make_random_bundle):
    bundle = load_bundle(make_random_bundle('fpseg'))
    with opened(bundle, kind_of(bundle)) as segmenter:
        yield segmenter


def test_a_frame_that_only_looks_like_a_known_one_is_encoded(device):
    bundle = device.bundle
    first, prompts = picture(), prompts_of(bundle, 3)
    other = picture(1)
    other[SIZE[0] // 2] = first[SIZE[0] // 2]
    with opened(bundle, TorchCpu()) as plain:
        for image, hit, encoded in ((first, False, 1), (other, False, 2), (first, True, 2),
                                    (other.copy(), True, 2), (other[:, ::-1], False, 3),
                                    (other[:, ::-1], True, 3)):
            found = device.segment(image, prompts)
            assert (found.cache_hits.image, device.run_counts.image_encoder) == (hit, encoded)
            np.testing.assert_allclose(
                found.probability, plain.segment(image, prompts).probability, atol=1e-5)


def test_pixels_are_compared_while_the_device_works(device, monkeypatch):
    image, prompts, log = picture(), prompts_of(device.bundle, 3), []
    device.segment(image, prompts)
    engine, find = device.backend.engine('answer'), device._images.find
    infer, to_host = engine.infer, engine.to_host
    monkeypatch.setattr(device._images, 'find', lambda image: log.append('find') or find(image))
    monkeypatch.setattr(engine, 'infer', lambda feeds: log.append('infer') or infer(feeds))
    monkeypatch.setattr(engine, 'to_host', lambda *each: log.append('to_host') or to_host(*each))
    device.segment(image, prompts)
    assert log == ['infer', 'find', 'to_host']


def test_an_answer_is_waited_for_by_the_graph_that_gave_it(device):
    """The stream that is current may be another than the one that the graph runs on."""
    for count in (3, 5):
        prompts = prompts_of(device.bundle, count)
        device.segment(picture(), prompts, with_probability=False)
        graph = next(reversed(device.backend.engine('answer')._graphs.values()))
        assert graph._done.log[-2:] == ['run', 'wait']


def test_a_caller_who_has_left_ends_the_work_of_a_device(device):
    image, prompts = picture(), prompts_of(device.bundle, 3)
    for _ in range(2):
        with pytest.raises(Cancelled):
            device.segment(image, prompts, cancelled=lambda: True)
    assert device.run_counts.image_encoder == 1
    assert device.segment(image, prompts).cache_hits.image
