"""Every format: the file computes what PyTorch does, says what it is, and what is wrong with it is said in a line."""

import json
import subprocess
import sys
import zipfile
from argparse import ArgumentTypeError

import numpy as np
import onnx
import pytest
import torch
from conftest import only_line, randomize_norms

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export, fuse, input_name
from mobileone_ext.deploy.described import describe
from mobileone_ext.deploy.formats import FORMATS
from mobileone_ext.deploy.formats.base import Request, load_format
from mobileone_ext.deploy.runtime import Network, is_exported, open_network

TINY = 'tests/configs/tiny_digits.py'
SIZE = 32
PACKAGES = dict(litert='litert_torch', executorch='executorch', ncnn='pnnx', mnn='MNN')
FILES = [
    *((name, form.suffixes[0]) for name, form in FORMATS.items() if name != 'coreml'),
    ('torchscript', '.pt2'),
]
pytestmark = pytest.mark.filterwarnings('ignore')


def classifier(**backbone):
    """The tiny config, and its branched model with outputs of a size that float16 holds."""
    config = cli.load_config(TINY)
    config.model.backbone.update(backbone)
    torch.manual_seed(0)
    model = randomize_norms(fuse.build_model(config, 'branched'))
    with torch.no_grad():
        features = model.backbone(torch.randn(4, 3, SIZE, SIZE))[-1].mean((2, 3))
        model.head.fc.weight.normal_().div_(features.norm(dim=1).max())
        for norm in model.backbone.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.weight.mul_(0.5)
    return config, model


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Config, branched model and its checkpoint."""
    config, model = classifier()
    path = tmp_path_factory.mktemp('tiny') / 'tiny.pth'
    torch.save(model.state_dict(), path)
    return config, model, path


def write(tiny, out, form, inside=False, **options):
    """Export the tiny model; what was written into its metadata."""
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form], reason=f'format {form} is not installed')
    config, _, checkpoint = tiny
    fused = export.load_fused(config, str(checkpoint))
    request = Request(form, SIZE, normalize=inside, softmax=inside, **options)
    preprocessing = Preprocessing(config)
    net = export.DeployNet(fused, preprocessing.normalize if inside else None, softmax=inside)
    request = export.described(request, describe(preprocessing, None, str(checkpoint)))
    export.write(net, out, request)
    return request.metadata


def pixels_and_images(count=3):
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    return pixels, (pixels - mean) / std


@pytest.mark.parametrize(('form', 'suffix'), FILES)
def test_a_suffix_in_capitals_tells_as_well(tiny, form, suffix, tmp_path):
    out = tmp_path / f'net{suffix}'
    write(tiny, out, form)
    _, images = pixels_and_images(1)
    expected = np.asarray(open_network(out)(images.numpy()))
    for path in (out, *export.companions(out)):
        path.rename(tmp_path / path.name.upper())
    big = tmp_path / out.name.upper()
    assert is_exported(big) and export.companions(big) == export.companions(tmp_path / f'NET{suffix}')
    np.testing.assert_array_equal(np.asarray(open_network(big)(images.numpy())), expected)


@pytest.mark.parametrize(('inside', 'half'), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(('form', 'suffix'), FILES)
def test_file_computes_what_the_branched_model_does(tiny, form, suffix, inside, half, tmp_path):
    out = tmp_path / f'net{suffix}'
    metadata = write(tiny, out, form, inside, half=half)
    pixels, images = pixels_and_images()
    with torch.no_grad():
        expected = tiny[1].double()(images.double())
        tiny[1].float()
    expected = expected.softmax(1) if inside else expected
    network = open_network(out, threads=1)
    found = torch.from_numpy(network((pixels if inside else images).numpy())).double()
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference < (2e-2 if half else 1e-4)
    assert not half or difference > 1e-6  # it is another file
    assert network.metadata == metadata
    assert json.loads(network.metadata['labels']) == [str(digit) for digit in range(10)]
    assert network.takes_pixels is inside
    assert network.num_classes in (10, None)
    assert is_exported(out)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {out.name, f'{out.name}.labels.txt', *(f'net{each}' for each in FORMATS[form].companions)}
    assert (tmp_path / f'{out.name}.labels.txt').read_text() == ''.join(f'{digit}\n' for digit in range(10))


@pytest.mark.parametrize(('form', 'suffix'), FILES)
def test_weights_in_channels_last_are_written_as_others(form, suffix, tmp_path):
    """As a network has them that was measured before."""
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form], reason=f'format {form} is not installed')
    net = export.DeployNet(fuse.fuse(classifier()[1])).to(memory_format=torch.channels_last)
    weight = net.backbone.stage0.branch_reparam.weight
    out = tmp_path / f'net{suffix}'
    export.write(net, out, Request(form, SIZE))
    assert weight.is_contiguous(memory_format=torch.channels_last)
    _, images = pixels_and_images()
    with torch.no_grad():
        expected = net(images).numpy()
    np.testing.assert_allclose(open_network(out)(images.numpy()), expected, atol=1e-4)


@pytest.mark.parametrize(('form', 'suffix'), FILES)
def test_weights_in_half_take_half_the_room(tiny, form, suffix, tmp_path):
    weights = '.bin' if '.bin' in FORMATS[form].companions else suffix
    config = cli.load_config(TINY)
    config.model.backbone.arch.width_factor, config.model.head.in_channels = [0.5] * 4, 256
    wide = fuse.build_model(config, 'fused')
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    for half in (False, True):
        (tmp_path / str(half)).mkdir()
        write((config, wide, tmp_path / 'wide.pth'), tmp_path / str(half) / f'net{suffix}', form, half=half)
    full, small = ((tmp_path / str(half) / f'net{weights}').stat().st_size for half in (False, True))
    # ExecuTorch keeps the weights of convolutions in float32.
    assert small < (1 if form == 'executorch' else 0.8) * full


@pytest.mark.parametrize('form', ['litert', 'executorch', 'ncnn', 'mnn', 'onnx', 'openvino'])
@pytest.mark.parametrize(
    'backbone',
    [
        dict(se_cfg=dict(ratio=4), act_cfg=dict(type='ReLU')),
        dict(act_cfg=dict(type='GELU')),
        dict(act_cfg=dict(type='SiLU')),
        dict(act_cfg=dict(type='PReLU')),
    ],
    ids=['SE', 'GELU', 'SiLU', 'PReLU'],
)
def test_other_operators_are_right_or_refused(form, backbone, tmp_path):
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form], reason=f'format {form} is not installed')
    if 'se_cfg' in backbone:
        config = cli.load_config(TINY)
        config.model.backbone.arch.num_se_blocks = [0, 0, 1, 1]
        torch.manual_seed(0)
        model = randomize_norms(fuse.build_model(config, 'fused'))
    else:
        config, model = classifier(**backbone)
        model = fuse.fuse(model)
    out = tmp_path / f'net{FORMATS[form].suffixes[0]}'
    older = {path: f'older {path.suffix}'.encode() for path in (out, *export.companions(out))}
    for path, content in older.items():
        path.write_bytes(content)
    net = export.DeployNet(model)
    try:
        request = Request(form, SIZE)
        export.write(net, out, request, lambda path: export.prove(net, path, request))
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == older
    else:
        assert not {path.read_bytes() for path in tmp_path.iterdir()} & set(older.values())


@pytest.mark.parametrize('missing', ['litert', 'executorch', 'ncnn', 'mnn'])
def test_missing_package_is_named_with_its_remedy(tiny, missing, tmp_path, run_tool, monkeypatch):
    modules = dict(
        litert=('litert_torch', 'ai_edge_litert.interpreter'), executorch=('executorch', 'executorch.runtime')
    )
    modules.update(ncnn=('pnnx', 'ncnn'), mnn=('_tools', 'MNN.nn', 'MNN.expr', 'MNN'))
    for module in modules[missing]:
        for name in [name for name in sys.modules if name == module or name.startswith(f'{module}.')]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, module, None)
    suffix = FORMATS[missing].suffixes[0]
    out = tmp_path / f'net{suffix}'
    code, text = run_tool('export', TINY, tiny[2], out, '--format', missing, '--size', SIZE)
    assert code == 1
    assert f"pip install 'mobileone_ext[{missing}]'" in only_line(text)
    assert list(tmp_path.iterdir()) == []
    out.write_text('{}')
    out.with_suffix('.bin').touch()
    with pytest.raises(ValueError, match=rf"pip install 'mobileone_ext\[{missing}\]'"):
        open_network(out)


@pytest.mark.parametrize(('form', 'suffix'), FILES)
@pytest.mark.parametrize('content', ['empty', 'cut off'])
def test_file_that_is_none_is_refused_in_a_line(tiny, form, suffix, content, tmp_path):
    good = tmp_path / f'good{suffix}'
    write(tiny, good, form)
    bad = tmp_path / f'bad{suffix}'
    whole = good.read_bytes()
    bad.write_bytes({'empty': b'', 'cut off': whole[: len(whole) // 2]}[content])
    for companion in FORMATS[form].companions:
        bad.with_suffix(companion).write_bytes(good.with_suffix(companion).read_bytes())
    with pytest.raises(ValueError, match=f'bad{suffix}: not a network that the runtime reads') as caught:
        open_network(bad)
    assert len(str(caught.value).splitlines()) == 1


def test_half_file_of_mnn_has_the_nearest_weights(tiny, tmp_path):
    write(tiny, tmp_path / 'net.mnn', 'mnn', half=True)
    config, _, checkpoint = tiny
    net = export.DeployNet(export.load_fused(config, str(checkpoint)))
    for parameter in net.parameters():
        parameter.data = torch.from_numpy(parameter.numpy().astype(np.float16).astype(np.float32))
    _, images = pixels_and_images()
    expected = net(images).detach().numpy()
    np.testing.assert_allclose(
        open_network(tmp_path / 'net.mnn')(images.numpy()), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_damaged_file_of_mnn_does_not_end_the_process(tiny, tmp_path):
    """MNN itself crashes on some of these: they are opened by a process of their own here."""
    write(tiny, tmp_path / 'net.mnn', 'mnn')
    whole = (tmp_path / 'net.mnn').read_bytes()
    for number, places in enumerate(([0], [len(whole) // 3], range(8, len(whole) // 2, 97))):
        content = bytearray(whole)
        for place in places:
            content[place] ^= 0x55
        (tmp_path / f'{number}.mnn').write_bytes(content)
    code = (
        'import sys; from mobileone_ext.deploy.runtime import open_network\n'
        'for path in sys.argv[1:]:\n'
        '    try: open_network(path)\n'
        '    except ValueError as error: print(error)'
    )
    bad = sorted(tmp_path.glob('?.mnn'))
    done = subprocess.run([sys.executable, '-c', code, *bad], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    said = [line for line in done.stdout.splitlines() if 'damaged: its content is not what its sha256 says' in line]
    assert len(said) == len(bad)


def test_mnn_reads_files_of_others_in_a_process_of_its_own_first(tiny, tmp_path, monkeypatch):
    """Files without digest; the crash is put in its place, as it takes many damaged files to find one."""
    write(tiny, tmp_path / 'net.mnn', 'mnn')
    other = tmp_path / 'other.mnn'
    other.write_bytes((tmp_path / 'net.mnn').read_bytes().replace(b'file_sha256', b'file_digest'))
    assert open_network(other).metadata['output'] == 'logits'
    monkeypatch.setattr(load_format('mnn'), '_LOAD', 'import os; os.kill(os.getpid(), 9)')
    with pytest.raises(ValueError, match='other.mnn: .*not a file of MNN'):
        open_network(other)
    open_network(tmp_path / 'net.mnn')


def test_failure_inside_a_runtime_is_one_line():
    def call(images):
        raise RuntimeError('\nException from src/place.cpp:84:\nshapes do not fit\nand a page of it')

    network = Network(call, False, None, {})
    with pytest.raises(ValueError, match=r'^the runtime fails on images 3 x 4 x 5 \(shapes do not fit\)$'):
        network(np.zeros((1, 3, 4, 5), np.float32))


@pytest.mark.parametrize('form', ['openvino', 'ncnn'])
def test_graph_with_another_exports_weights_is_refused(tiny, form, tmp_path):
    suffix = FORMATS[form].suffixes[0]
    write(tiny, tmp_path / f'a{suffix}', form)
    write(tiny, tmp_path / f'b{suffix}', form, inside=True)
    open_network(tmp_path / f'a{suffix}')
    content = bytearray((tmp_path / 'a.bin').read_bytes())
    content[-1] ^= 1
    (tmp_path / 'a.bin').write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.bin is of another export than a'):
        open_network(tmp_path / f'a{suffix}')
    (tmp_path / 'a.bin').unlink()
    with pytest.raises((ValueError, OSError), match='a.bin'):
        open_network(tmp_path / f'a{suffix}')


def test_weights_of_another_graph_are_not_overwritten(tiny, tmp_path):
    write(tiny, tmp_path / 'net.xml', 'openvino')
    before = (tmp_path / 'net.bin').read_bytes()
    with pytest.raises(ValueError, match=r'would take the place of net\.bin too, which belongs to net\.xml'):
        export.check_place(tmp_path / 'net.param', 'ncnn')
    (tmp_path / 'other.json').write_text('{}')
    with pytest.raises(ValueError, match=r'would take the place of other\.json too'):
        export.check_place(tmp_path / 'other.param', 'ncnn')
    export.check_place(tmp_path / 'net.xml', 'openvino')
    assert (tmp_path / 'net.bin').read_bytes() == before


@pytest.mark.parametrize(('form', 'suffix'), [file for file in FILES if file[0] != 'ncnn'])
def test_images_of_another_size_are_refused(tiny, form, suffix, tmp_path):
    write(tiny, tmp_path / f'net{suffix}', form)
    network = open_network(tmp_path / f'net{suffix}')
    if network.size is None:
        pytest.skip(f'{suffix}: the file takes any size')
    assert network.size == (SIZE, SIZE)
    with pytest.raises(ValueError, match='takes images of 3 x 32 x 32 pixels, these have 3 x 48 x 40'):
        network(np.zeros((1, 3, 48, 40), np.float32))
    with pytest.raises(ValueError, match='takes images of 3 x 32 x 32 pixels, these have 1 x 32 x 32'):
        network(np.zeros((1, 1, 32, 32), np.float32))


def test_executorch_takes_the_threads_that_are_asked_for(tiny, tmp_path):
    write(tiny, tmp_path / 'net.pte', 'executorch')
    from executorch.extension.pybindings import portable_lib

    for threads in (2, 1):
        open_network(tmp_path / 'net.pte', threads)
        assert portable_lib._threadpool_get_thread_count() == threads


@pytest.mark.parametrize('opset', [10, 13, 21])
def test_opset_and_input_name(tiny, opset, tmp_path):
    write(tiny, tmp_path / 'net.onnx', 'onnx', opset=opset, input_name='serving:0')
    proto = onnx.load(tmp_path / 'net.onnx')
    assert proto.opset_import[0].version == opset
    assert [value.name for value in proto.graph.input] == ['serving:0']
    _, images = pixels_and_images()
    with torch.no_grad():
        expected = fuse.fuse(tiny[1])(images).numpy()
    np.testing.assert_allclose(open_network(tmp_path / 'net.onnx')(images.numpy()), expected, atol=1e-4)


def test_input_name_in_other_formats(tiny, tmp_path):
    write(tiny, tmp_path / 'net.param', 'ncnn', input_name='photo')
    assert (tmp_path / 'net.param').read_text().splitlines()[2].split()[-1] == 'photo'
    write(tiny, tmp_path / 'net.tflite', 'litert', input_name='photo')
    from ai_edge_litert.interpreter import Interpreter

    (signature,) = Interpreter(str(tmp_path / 'net.tflite')).get_signature_list().values()
    assert (signature['inputs'], signature['outputs']) == (['photo'], ['output'])


@pytest.mark.parametrize('name', ['', '1x', 'output', 'a\n'])
def test_bad_input_name_is_refused(name):
    with pytest.raises(ArgumentTypeError, match='a letter, then letters'):
        input_name(name)


@pytest.mark.parametrize('inside', [False, True])
def test_litert_metadata_are_those_of_the_format(tiny, inside, tmp_path):
    """Read field by field, by the places in LiteRT's schema: the file of labels, mean and std, 0 and 1 of pixels."""
    path = tmp_path / 'net.tflite'
    metadata = write(tiny, path, 'litert', inside)
    with zipfile.ZipFile(path) as files:
        assert files.read('labels.txt').decode().split() == [str(digit) for digit in range(10)]
        assert json.loads(files.read('metadata.json')) == metadata

    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    entries = {model.Metadata(index).Name(): model.Metadata(index).Buffer() for index in range(model.MetadataLength())}
    buffer = model.Buffers(entries[b'TFLITE_METADATA']).DataAsNumpy().tobytes()
    assert buffer[4:8] == b'M001'

    def field(table, slot):
        return table.Offset(4 + 2 * slot)

    def child(table, slot):
        return flatbuffers.table.Table(buffer, table.Indirect(table.Pos + field(table, slot)))

    def item(table, slot):
        return flatbuffers.table.Table(buffer, table.Indirect(table.Vector(field(table, slot))))

    root = flatbuffers.table.Table(buffer, int.from_bytes(buffer[:4], 'little'))
    graph = item(root, 3)
    options = child(item(item(graph, 2), 4), 1)
    for slot, key, number in ((0, 'mean', 0.0), (1, 'std', 1.0)):
        expected = [number] if inside else json.loads(metadata[key])
        assert options.VectorLen(field(options, slot)) == len(expected)
        values = np.frombuffer(buffer, np.float32, len(expected), options.Vector(field(options, slot)))
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    labels = item(item(graph, 3), 6)
    assert labels.String(labels.Pos + field(labels, 0)) == b'labels.txt'


def test_onnx_file_in_another_layout_and_with_two_inputs(tmp_path):
    """Files of other tools: images N, H, W, C are taken; two inputs are refused."""

    def save(name, inputs):
        outputs = [onnx.helper.make_tensor_value_info('y', 1, ['n', 3])]
        nodes = [onnx.helper.make_node('ReduceMean', [inputs[0].name], ['y'], axes=[1, 2], keepdims=0)]
        graph = onnx.helper.make_graph(nodes, 'g', inputs, outputs)
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8),
            tmp_path / name,
        )

    image = onnx.helper.make_tensor_value_info('x', 1, ['n', SIZE, SIZE, 3])
    save('nhwc.onnx', [image])
    images = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)
    np.testing.assert_allclose(open_network(tmp_path / 'nhwc.onnx')(images), images.mean((2, 3)), rtol=1e-5)
    save('two.onnx', [image, onnx.helper.make_tensor_value_info('z', 1, [1])])
    with pytest.raises(ValueError, match='has 2 inputs'):
        open_network(tmp_path / 'two.onnx')
    save('eight.onnx', [onnx.helper.make_tensor_value_info('x', 1, [8, SIZE, SIZE, 3])])
    with pytest.raises(ValueError, match='one image or any number'):
        open_network(tmp_path / 'eight.onnx')


@pytest.mark.skipif(sys.platform == 'darwin', reason='macOS runs it')
def test_coreml_needs_macos(tmp_path):
    (tmp_path / 'net.mlpackage').mkdir()
    with pytest.raises(ValueError, match='net.mlpackage.*CoreML runs on macOS alone'):
        open_network(tmp_path / 'net.mlpackage')


def test_folder_with_other_things_is_not_replaced_by_a_coreml_package(tmp_path):
    folder = tmp_path / 'net.mlpackage'
    folder.mkdir()
    (folder / 'diary.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds other things'):
        export.check_place(folder, 'coreml')
