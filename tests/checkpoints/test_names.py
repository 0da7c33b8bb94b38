"""Weights by name and address, from a server on the loopback: downloaded once, whole or not at all, and checked."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
import yaml
from conftest import ROOT, only_line
from hostile import Bomb
from networks import random_state
from server import Server

from mobileone_ext.checkpoints import download, names
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.checkpoints.names import PUBLISHED, resolve

APPLE, MMPRETRAIN, TIMM = 'apple/mobileone_s0', 'mmpretrain/mobileone-s0_8xb32_in1k', 'timm/mobileone_s0.apple_in1k'


@pytest.fixture
def server():
    with Server() as running:
        yield running


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of downloads, still absent."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.fixture
def publish(server, monkeypatch):
    """``publish(name, content)``: a row of the table that leads to the server instead."""

    def change(name, content, digits='', **options):
        url = server.add(f'/{PUBLISHED[name].file}', content, **options)
        monkeypatch.setitem(PUBLISHED, name, PUBLISHED[name]._replace(url=url, sha256=digits))
        return url

    return change


@pytest.fixture(scope='session')
def fused_s0(tmp_path_factory):
    """A fused S0 as bytes of a torch file."""
    path = tmp_path_factory.mktemp('weights') / 's0.pth'
    torch.save(random_state('s0', 'fused'), path)
    return path.read_bytes()


@pytest.fixture(scope='session')
def safe_s0():
    """A fused S0 as bytes of a safetensors file."""
    return safetensors.torch.save(random_state('s0', 'fused'))


def digest(content):
    return hashlib.sha256(content).hexdigest()


def kept(cache):
    """What a download left in the cache, locks aside."""
    return sorted(path.name for path in cache.glob('*') if not path.name.endswith('.lock'))


def child(code, **environment):
    """A Python process of its own that runs ``code``, with pipes."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    command = [sys.executable, '-c', code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_name_is_downloaded_once_and_read(server, cache, publish, fused_s0):
    publish(MMPRETRAIN, fused_s0, digest(fused_s0)[:8])
    weights = load_weights(MMPRETRAIN)
    assert (weights.structure.variant, weights.form) == ('s0', 'fused')
    assert resolve(MMPRETRAIN) == resolve(Path(MMPRETRAIN)) == cache / PUBLISHED[MMPRETRAIN].file
    assert len(server.requests) == 1 and kept(cache) == [PUBLISHED[MMPRETRAIN].file]


def test_an_existing_file_comes_first(tmp_path, monkeypatch, cache, fused_s0):
    monkeypatch.chdir(tmp_path)
    Path('apple').mkdir()
    Path(APPLE).write_bytes(fused_s0)
    assert resolve(APPLE) == Path(APPLE) and load_weights(APPLE).form == 'fused'
    assert not cache.exists()


def test_a_file_in_the_cache_needs_neither_network_nor_write_access(cache, publish, server, fused_s0):
    publish(APPLE, fused_s0)
    resolve(APPLE)
    (lock,) = cache.glob('.*.lock')
    lock.unlink()
    server.answers.clear()
    assert load_weights(APPLE).form == 'fused'
    assert len(server.requests) == 1 and not list(cache.glob('.*'))


@pytest.mark.parametrize(
    'name, hint',
    [
        ('mobileone_s0', 'did you mean apple/mobileone_s0?'),
        ('Apple/MobileOne_S3-fused', 'did you mean apple/mobileone_s3-fused?'),
        ('apple/mobileone_s5', 'did you mean apple/mobileone_s'),
        ('mmpretrain/mobileone-s2_8xb32_in1', 'did you mean mmpretrain/mobileone-s2_8xb32_in1k?'),
        ('timm/resnet50', 'convert_checkpoint.py --list'),
        ('s3://bucket/file.pth', 'addresses begin with http:// or https://'),
        ('nowhere/run/epoch_300.pth', 'no such run or file'),
    ],
)
def test_what_is_neither_file_nor_name(name, hint):
    with pytest.raises(FileNotFoundError) as error:
        load_weights(name)
    assert str(error.value).startswith(f'{name}: no such run or file') and hint in str(error.value)
    assert ('did you mean' in str(error.value)) == ('did you mean' in hint)


def truncated(server, content):
    return server.add('/s0.pth', content[: len(content) // 2], claimed=len(content))


def closed(server, content):
    server.answers['/s0.pth'] = lambda handler: None
    return server.url + '/s0.pth'


def silent(server, content):
    server.answers['/s0.pth'] = lambda handler: handler.rfile.read()
    return server.url + '/s0.pth'


def refused(server, content):
    with Server() as other:
        return other.url + '/s0.pth'


BAD_ANSWERS = {
    'truncated': (truncated, 'the connection ended after'),
    'empty': (lambda server, _: server.add('/s0.pth', b''), 'the connection ended after 0 bytes'),
    'closed': (closed, 'without response'),
    'silent': (silent, 'no answer within 0.5 s'),
    'refused': (refused, 'Connection refused'),
    'missing': (lambda server, _: server.url + '/s0.pth', 'HTTP 404 Not Found'),
    'page': (lambda server, _: server.add('/s0.pth', b'<html>', Content_Type='text/html'), 'a page, not a file'),
    'no host': (lambda *_: 'http:///s0.pth', 'no host given'),
    'space': (lambda server, _: server.url + '/s 0.pth', 'control characters'),
    'too large': (lambda server, _: server.add('/s0.pth', b'', claimed=1 << 60), 'bytes needed in'),
}


@pytest.mark.parametrize('kind', BAD_ANSWERS)
def test_a_failed_download_is_one_line_and_leaves_nothing(server, cache, monkeypatch, run_tool, fused_s0, kind):
    monkeypatch.setattr(download, 'TIMEOUT', 0.5)
    url, reason = BAD_ANSWERS[kind][0](server, fused_s0), BAD_ANSWERS[kind][1]
    code, printed = run_tool('convert_checkpoint', url, cache.parent.parent.parent / 'out.pth', '--to', 'timm')
    message = only_line(printed)
    assert code == 1 and reason in message and message.startswith(f'error: {url}: not downloaded')
    assert f'put the file at {cache}{os.sep}' in message
    assert not kept(cache)


def test_what_the_message_says_to_do_works(server, cache, fused_s0):
    with pytest.raises(OSError) as error:
        resolve(server.url + '/s0.pth')
    path = Path(str(error.value).split('put the file at ')[1].split(', or set')[0])
    path.write_bytes(fused_s0)
    assert load_weights(server.url + '/s0.pth').form == 'fused'


def test_the_message_for_a_name_says_where_its_file_comes_from(server, cache, publish, fused_s0):
    url = publish(APPLE, fused_s0)
    server.answers.clear()
    with pytest.raises(OSError, match=f'{APPLE}: not downloaded from {url} .*put the file at {cache}/mobileone_s0_unf'):
        resolve(APPLE)


def test_a_wrong_hash_is_not_kept(cache, publish, fused_s0):
    publish(MMPRETRAIN, fused_s0, 'ffffffff')
    with pytest.raises(ValueError, match=f'{MMPRETRAIN}: sha256 is {digest(fused_s0)[:8]}, .* has ffffffff'):
        resolve(MMPRETRAIN)
    assert not kept(cache)


def test_a_wrong_file_in_the_cache_is_noticed(cache, publish, fused_s0):
    publish(MMPRETRAIN, fused_s0, digest(fused_s0)[:8])
    resolve(MMPRETRAIN).write_bytes(fused_s0[:-1])
    with pytest.raises(ValueError, match='remove it to download it again'):
        resolve(MMPRETRAIN)


def test_a_damaged_file_of_an_unknown_hash_says_how_to_get_another(server, cache):
    url = server.add('/s0.pth', b'no checkpoint at all')
    with pytest.raises(ValueError, match=f'{cache}/.*_s0.pth: damaged.*; remove it to download it again'):
        load_weights(url)


def test_an_address_may_carry_the_hash(server, cache, fused_s0):
    url = server.add('/s0.pth', fused_s0)
    resolve(f'{url}#sha256={digest(fused_s0)}')
    with pytest.raises(ValueError, match='sha256 is'):
        resolve(f'{url}#sha256={digest(b"other")[:8]}')
    with pytest.raises(ValueError, match='after # only sha256=DIGITS is known'):
        resolve(f'{url}#md5=0')


def test_addresses_that_end_alike_are_kept_apart(server, cache):
    files = {server.add(path, path.encode()): path.encode() for path in ('/a/s0.pth', '/b/s0.pth', '/b/s0.pth?v=2')}
    assert all(resolve(url).read_bytes() == content for url, content in files.items())
    assert len(kept(cache)) == 3


def test_the_address_of_a_name_is_that_name(cache, publish, fused_s0):
    url = publish(MMPRETRAIN, fused_s0, digest(fused_s0)[:8])
    assert resolve(url) == cache / PUBLISHED[MMPRETRAIN].file


@pytest.mark.parametrize('path', ['/..%2f..%2fs0.pth', '/%2e%2e', '/', '/ä.pth', '/' + 'a' * 300])
def test_no_address_leaves_the_cache(server, cache, path):
    server.answers[path] = server.answers.get(server.add('/any', b'x').removeprefix(server.url))
    try:
        actual = resolve(server.url + path)
    except OSError:
        assert not kept(cache)
    else:
        assert actual.parent == cache and actual.read_bytes() == b'x'


def test_code_in_a_downloaded_file_does_not_run(server, cache, tmp_path):
    torch.save(dict(state_dict={}, call=Bomb(tmp_path / 'trace')), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='holds pickled code'):
        load_weights(server.add('/bad.pth', (tmp_path / 'bad.pth').read_bytes()))
    assert not (tmp_path / 'trace').exists()


def test_a_cache_that_cannot_be_made(server, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))
    with pytest.raises(OSError, match=r'not downloaded \(Not a directory\).*set TORCH_HOME to another cache'):
        resolve(server.add('/s0.pth', b'x'))


@pytest.mark.skipif(os.name != 'posix', reason='limits of a process')
def test_a_disk_that_is_full(server, cache, fused_s0):
    url = server.add('/s0.pth', fused_s0)
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, -1))'
    run = child(f'{limit}\nfrom mobileone_ext.checkpoints.names import resolve\nresolve({url!r})')
    assert 'OSError' in run.communicate()[1] and run.returncode == 1
    assert not kept(cache)


@pytest.mark.skipif(os.name != 'posix', reason='signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_is_started_anew(server, cache, fused_s0, number):
    url, begun, going_on = server.add('/s0.pth', fused_s0), threading.Event(), threading.Event()
    whole = server.answers['/s0.pth']

    def half(handler):
        handler.send_response(200)
        handler.send_header('Content-Length', str(len(fused_s0)))
        handler.end_headers()
        handler.wfile.write(fused_s0[: len(fused_s0) // 2])
        begun.set()
        going_on.wait(60)

    server.answers['/s0.pth'] = half
    listening = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)'  # also in the background
    run = child(f'{listening}\nfrom mobileone_ext.checkpoints.names import resolve\nresolve({url!r})')
    assert begun.wait(60)
    run.send_signal(number)
    run.communicate()
    going_on.set()
    assert run.returncode != 0 and not (number == signal.SIGINT and kept(cache))
    server.answers['/s0.pth'] = whole
    assert resolve(url).read_bytes() == fused_s0
    assert kept(cache) == [resolve(url).name]


def test_two_processes_at_once_download_once(server, cache, fused_s0):
    url, both = server.add('/s0.pth', fused_s0), threading.Barrier(2)
    whole = server.answers['/s0.pth']

    def slow(handler):
        try:
            both.wait(3)  # for a second request, which must not come
        except threading.BrokenBarrierError:
            whole(handler)

    server.answers['/s0.pth'] = slow
    code = f'from mobileone_ext.checkpoints.names import resolve\nprint(resolve({url!r}))'
    runs = [child(code) for _ in range(2)]
    printed = [run.communicate()[0].strip() for run in runs]
    assert len(server.requests) == 1 and set(printed) == {str(resolve(url))}
    assert resolve(url).read_bytes() == fused_s0


def lead_hub_to(url, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'ENDPOINT', url)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url + '/{repo_id}/resolve/{revision}/{filename}')


@pytest.fixture
def hub(server, cache, tmp_path, monkeypatch):
    """``hub(content, etag)``: Hugging Face's hub on the server offers ``content`` as timm's S0."""
    constants = pytest.importorskip('huggingface_hub.constants')
    lead_hub_to(server.url, monkeypatch)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    path = f'/{TIMM}/resolve/main/model.safetensors'
    return lambda content, etag: server.add(path, content, X_Repo_Commit='0' * 40, ETag=f'"{etag}"')


def test_timm_by_the_hub(server, cache, hub, tmp_path, safe_s0):
    hub(safe_s0, digest(safe_s0))
    assert load_weights(TIMM).form == 'fused'
    path = resolve(TIMM)
    assert tmp_path / 'hub' in path.parents and not cache.exists()
    server.answers.clear()
    count = len(server.requests)
    assert resolve(TIMM) == path and len(server.requests) == count


def test_timm_by_the_hub_fails_in_one_line(cache, hub, monkeypatch, safe_s0):
    place = f'put the file at {cache}/timm_mobileone_s0.apple_in1k.safetensors'
    with pytest.raises(OSError, match=f'{TIMM}: not downloaded from https://hugg.*404.*{place}'):
        resolve(TIMM)
    hub(safe_s0, digest(b'other'))
    with pytest.raises(ValueError, match='the published file has'):
        resolve(TIMM)


def test_timm_without_a_network(cache, hub, monkeypatch):
    from huggingface_hub import constants

    with Server() as gone:
        lead_hub_to(gone.url, monkeypatch)
    with pytest.raises(OSError, match='refused.*put the file at'):
        resolve(TIMM)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(OSError, match='(?i)offline.*put the file at'):
        resolve(TIMM)


def test_timm_without_the_hub_package_or_by_hand(server, cache, publish, monkeypatch, safe_s0):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    publish(TIMM, safe_s0)
    assert resolve(TIMM) == cache / 'timm_mobileone_s0.apple_in1k.safetensors'
    monkeypatch.undo()
    monkeypatch.setenv('TORCH_HOME', str(cache.parent.parent))
    assert load_weights(TIMM).form == 'fused'  # the hub is not asked for what is there


def test_the_list_is_printed_and_in_the_docs(run_tool):
    code, printed = run_tool('convert_checkpoint', '--list')
    assert code == 0 and names.table() in printed
    assert names.table() in (ROOT / 'docs' / 'checkpoints.md').read_text()
    assert len(PUBLISHED) == 20 and len({entry.url for entry in PUBLISHED.values()}) == 20
    assert len({entry.file for entry in PUBLISHED.values()}) == 20


def test_mmpretrain_rows_are_those_of_its_metafile():
    import mmpretrain

    metafile = Path(mmpretrain.__file__).parent / '.mim' / 'configs' / 'mobileone' / 'metafile.yml'
    models = {model['Name']: model for model in yaml.safe_load(metafile.read_text())['Models']}
    for variant in ('s0', 's1', 's2', 's3', 's4'):
        entry = PUBLISHED[f'mmpretrain/mobileone-{variant}_8xb32_in1k']
        model = models[f'mobileone-{variant}_8xb32_in1k']
        # The maintained fork offers the same files from a host of its own.
        assert urlsplit(entry.url).path == urlsplit(model['Weights']).path and entry.url.endswith(
            f'-{entry.sha256}.pth'
        )
        assert entry.top1 == model['Results'][0]['Metrics']['Top 1 Accuracy']


def test_timm_rows_are_those_of_its_models():
    timm = pytest.importorskip('timm')
    for variant in ('s0', 's1', 's2', 's3', 's4'):
        settings = timm.get_pretrained_cfg(f'mobileone_{variant}.apple_in1k')
        assert PUBLISHED[f'timm/mobileone_{variant}.apple_in1k'].repo == settings.hf_hub_id
