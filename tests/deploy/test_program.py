"""The exporter by torch.export, which is taken where torch has no tracer: the same plain graph, and what is lost."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, randomize_norms
from test_quantization import SE_BLOCKS, images, int8_file, small_classifier

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export, fuse
from mobileone_ext.deploy.formats import onnx as onnx_format
from mobileone_ext.deploy.formats import torchscript
from mobileone_ext.deploy.formats.base import Request
from mobileone_ext.deploy.quantization.calibrate import quantize
from mobileone_ext.deploy.runtime import open_network

pytestmark = pytest.mark.filterwarnings('ignore')


def deploy_net(path):
    config = cli.load_config(path)
    torch.manual_seed(0)
    model = fuse.fuse(randomize_norms(fuse.build_model(config, 'branched')))
    return export.DeployNet(model, Preprocessing(config).normalize, softmax=True)


def plain(proto):
    """Each node as its operator, what goes in (the bytes of a weight, or the number of a node) and what says more."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    number, nodes = {proto.graph.input[0].name: 'image'}, []
    for node in proto.graph.node:
        if node.op_type == 'Constant':
            weights[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
            continue
        known = ('group', 'strides', 'pads', 'dilations', 'kernel_shape', 'axis', 'transB')
        said = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute if each.name in known}
        inputs = [weights[name].tobytes() if name in weights else number[name] for name in node.input]
        nodes.append((node.op_type, tuple(inputs), str(sorted(said.items()))))
        number[node.output[0]] = len(nodes)
    assert number[proto.graph.output[0].name] == len(nodes)
    return nodes


def check_same(net, size, dynamic_batch):
    image, request = torch.zeros(2 if dynamic_batch else 1, 3, size, size), Request('onnx', size, 18)
    request = Request('onnx', size, 18, dynamic_batch=dynamic_batch)
    assert torchscript.has_tracer()
    old, new = onnx_format.onnx_proto(net, image, request), onnx_format.by_program(net, image, request)
    onnx.checker.check_model(new, full_check=True)
    assert plain(new) == plain(old)
    for one, other in zip((*new.graph.input, *new.graph.output), (*old.graph.input, *old.graph.output)):
        assert (one.name, one.type) == (other.name, other.type)
    images = np.random.default_rng(0).integers(0, 256, (2 if dynamic_batch else 1, 3, size, size)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=['CPUExecutionProvider']).run(
            None, {'image': images}
        )[0]
        for proto in (new, old)
    ]
    np.testing.assert_array_equal(*outputs)
    names = [node.name for node in new.graph.node]
    assert len(set(names)) == len(names) and sum('/backbone/' in name for name in names) > len(names) - 8
    assert [('/se/' in node.name) for node in new.graph.node] == [
        '/se/' in node.name for node in old.graph.node if node.op_type != 'Constant'
    ]
    assert b'.py' not in new.SerializeToString()  # no lines of Python, no folders
    return new


@pytest.mark.parametrize('dynamic_batch', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_same_graph(dynamic_batch):
    new = check_same(deploy_net(TINY), 32, dynamic_batch)
    kinds = Counter(node.op_type for node in new.graph.node)
    assert {*kinds} == {'Sub', 'Div', 'Conv', 'Relu', 'GlobalAveragePool', 'Flatten', 'Gemm', 'Softmax'}


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['s0', 's1', 's2', 's3', 's4'])
def test_the_same_graph_of_every_variant(variant):
    check_same(deploy_net(f'configs/mobileone_{variant}_8xb32.py'), 64, True)


@pytest.fixture
def later(monkeypatch):
    """As with a torch that has no tracer."""
    monkeypatch.delattr(torch.jit, 'trace')


@pytest.mark.slow
@pytest.mark.parametrize('opset', [14, 17, 21])
def test_taken_where_the_tracer_is_gone(opset, later, tmp_path):
    net = deploy_net(TINY)
    request = Request('onnx', 32, opset, normalize=True, heatmap=True)
    export.write(net, tmp_path / 'net.onnx', request)
    assert onnx.load(tmp_path / 'net.onnx').opset_import[0].version == opset
    images = torch.randint(0, 256, (3, 3, 32, 32)).float()
    torch.testing.assert_close(
        torch.from_numpy(open_network(tmp_path / 'net.onnx')(images.numpy())), net(images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('opset', [pytest.param(10, marks=pytest.mark.slow), 13])
def test_low_opsets_are_lost_then(opset, later, tmp_path):
    with pytest.raises(ValueError, match=f'--opset {opset}: this torch writes .* of opset .* and above alone'):
        export.write(deploy_net(TINY), tmp_path / 'net.onnx', Request('onnx', 32, opset))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('se_blocks', [[0] * 4, SE_BLOCKS])
def test_int8_of_a_program(se_blocks, later, tmp_path):
    int8 = quantize(small_classifier(se_blocks), images())
    int8_file(None, int8, tmp_path / 'int8.onnx')
    found, expected = open_network(tmp_path / 'int8.onnx')(images().numpy()), int8(images()).numpy()
    assert np.quantile(np.abs(found - expected) / np.abs(expected).max(), 0.9) < 0.02


@pytest.mark.slow
def test_coreml_takes_a_program(later, tmp_path):
    coremltools = pytest.importorskip('coremltools')
    export.write(deploy_net(TINY), tmp_path / 'net.mlpackage', Request('coreml', 32, normalize=True, softmax=True))
    spec = coremltools.models.MLModel(str(tmp_path / 'net.mlpackage'), skip_model_load=True).get_spec()
    (block,) = spec.mlProgram.functions['main'].block_specializations.values()
    kinds = Counter(operation.type for operation in block.operations)
    assert kinds['conv'] == 9 and kinds['linear'] == kinds['softmax'] == 1


@pytest.mark.slow
def test_torchscript_names_what_is_gone(later, tmp_path):
    with pytest.raises(ValueError, match="torchscript cannot hold this network: .*'trace'"):
        export.write(deploy_net(TINY), tmp_path / 'net.pt', Request('torchscript', 32))
    export.write(deploy_net(TINY), tmp_path / 'net.pt2', Request('torchscript', 32))
