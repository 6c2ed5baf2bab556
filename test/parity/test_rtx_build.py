# SPDX-License-Identifier: Apache-2.0
"""Every exported graph parses and builds with TensorRT-RTX, whose builder needs no GPU."""

import onnx
import pytest
import tensorrt_rtx_bindings as trt

# Smallest, usual and largest length of each dynamic axis.
RANGES = {'prompts': (1, 13, 64), 'height': (16, 480, 1080), 'width': (16, 640, 1920)}


class Log(trt.ILogger):
    """Keep what the builder complains about."""

    def __init__(self):
        super().__init__()
        self.complaints = []

    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.WARNING:
            self.complaints.append(message)


def build(path):
    """Build one graph; return the plan and the builder's complaints."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(path))
    assert parsed, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    for port in onnx.load(path, load_external_data=False).graph.input:
        axes = [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        if any(axis in RANGES for axis in axes):
            profile.set_shape(port.name, *([RANGES[axis][step] if axis in RANGES else axis
                                            for axis in axes] for step in range(3)))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config), log.complaints


@pytest.mark.parametrize('stage', ['image_encoder', 'text_encoder', 'film', 'decoder', 'fusion'])
def test_the_graph_builds(exported, stage):
    bundle, _ = exported
    plan, complaints = build(bundle.graph(stage))
    assert plan is not None, complaints
    assert plan.nbytes > 0
    assert complaints == []


def test_a_graph_that_cannot_be_parsed_is_noticed(tmp_path):
    """The test above can fail: an antialiased Resize is what TensorRT does not take."""
    image = onnx.helper.make_tensor_value_info('image', onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    small = onnx.helper.make_tensor_value_info('small', onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    sizes = onnx.helper.make_tensor('sizes', onnx.TensorProto.INT64, [4], [1, 3, 32, 32])
    node = onnx.helper.make_node('Resize', ['image', '', '', 'sizes'], ['small'], mode='linear',
                                 antialias=1)
    graph = onnx.helper.make_graph([node], 'resize', [image], [small], [sizes])
    path = tmp_path / 'resize.onnx'
    onnx.save(onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=10), path)
    with pytest.raises(AssertionError, match='antialias'):
        build(path)
