"""``--resume`` of damaged, edited and foreign training checkpoints: one line and exit code 1, or the right weights."""

import copy
import random
import warnings
from collections import Counter

import pytest
import torch
from conftest import TINY, data_options, only_line
from mmengine.optim import build_optim_wrapper

from mobileone_ext.checkpoints import training
from mobileone_ext.checkpoints.training import check_fits_run
from mobileone_ext.engine import runner
from mobileone_ext.recipe.checkpointing import to_plain
from mobileone_ext.recipe.resuming import after_a_step, changed_step

pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')

FEW, MANY = range(8), range(8, 300)


@pytest.fixture
def resume(run_tool, digits, tmp_path):
    """``resume(checkpoint, *options)`` writes it and runs ``tools/train.py --resume FILE`` to the end.

    One without a digest is taken for an edited one.
    """

    def run(checkpoint, *options, config=()):
        path = tmp_path / 'edited.pth'
        if isinstance(checkpoint, bytes):
            path.write_bytes(checkpoint)
        else:
            torch.save(checkpoint, path)
            if not has_digest(checkpoint):
                options = (*options, '--without-digest')
        arguments = ['--work-dir', tmp_path / 'run', '--resume', path, '--no-validate', *options]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            code, text = run_tool('train', TINY, *arguments, '--cfg-options', *data_options(digits), *config)
        return code, text

    return run


@pytest.fixture
def checkpoint(tiny_run):
    return torch.load(tiny_run / 'epoch_3.pth', weights_only=True)


def has_digest(checkpoint):
    return not isinstance(checkpoint.get('meta'), dict) or 'digest' in checkpoint['meta']


def unsealed(checkpoint):
    """``checkpoint`` without digests, as from somewhere else."""
    del checkpoint['meta']['digest']
    return checkpoint


def edit(path, value):
    """An edit that puts ``value`` at ``path`` (a|b|c); ``...`` removes what is there."""

    def apply(checkpoint):
        *parents, last = [int(key) if key.isdigit() else key for key in path.split('|')]
        for key in parents:
            checkpoint = checkpoint[key]
        if value is ...:
            del checkpoint[last]
        else:
            checkpoint[last] = value(checkpoint[last]) if callable(value) else value

    return apply


KEY = 'backbone.stage1.0.branch_scale.conv.weight'
# What the config may have changed, what would be silently wrong, and one of each that fails further down.
MISFITS = {
    'meta a str': (edit('meta', 'epoch 3'), 'not a training checkpoint (without meta)'),
    'no epoch': (edit('meta|epoch', ...), 'meta.epoch is None'),
    'epoch -3': (edit('meta|epoch', -3), 'meta.epoch is -3'),
    'epoch 99': (edit('meta|epoch', 99), 'meta.epoch is 99, the run has 4 epochs'),
    'epoch and iter apart': (edit('meta|epoch', 2), 'meta.iter is 24, 2 epochs have 16'),
    'seed a str': (edit('meta|seed', '3'), "meta.seed is '3' (str)"),
    'no groups': (edit('optimizer', {}), 'the file: 1 key missing: optimizer'),
    'momentum of one lost': (edit('optimizer|state|5', ...), 'optimizer.state has nothing for parameter 5'),
    'momentum of another shape': (
        edit('optimizer|state|0|momentum_buffer', torch.zeros(3)),
        'optimizer.state[0].momentum_buffer is a tensor of shape [3] (torch.float32), the config makes a tensor of',
    ),
    'a group lost': (edit('optimizer|param_groups|1', ...), 'optimizer.param_groups has 1 entries, the config makes 2'),
    'lr NaN': (edit('optimizer|param_groups|0|lr', float('nan')), 'optimizer.param_groups[0].lr holds NaN'),
    'hub empty': (edit('message_hub', {}), 'log_scalars'),
    'history of other lengths': (edit('message_hub|log_scalars|train/lr|counts', torch.zeros(3)), 'AssertionError'),
    'weights missing': (edit(f'state_dict|{KEY}', ...), f'state_dict: 1 key missing: {KEY}'),
    'weights of another dtype': (edit(f'state_dict|{KEY}', torch.Tensor.double), f'state_dict.{KEY} is a tensor of'),
    'weights NaN': (edit(f'state_dict|{KEY}', lambda x: x * float('nan')), f'state_dict.{KEY} holds NaN'),
    'no schedulers': (edit('param_schedulers', ...), 'the file: 1 key missing: param_schedulers'),
    'a scheduler lost': (edit('param_schedulers', []), 'param_schedulers has 0 entries, the config makes 1'),
    'no EMA': (edit('ema_state_dict', ...), 'the file: 1 key missing: ema_state_dict'),
    'hooks of text': (edit('hooks', ['text']), "'str' object has no attribute 'items'"),
    'a memory of another kind': (edit('hooks', [{'EMAHook': {'begin_iter': 'x'}}]), "hooks.EMAHook.begin_iter is 'x'"),
    'a memory in place of a method': (edit('hooks', [{'EMAHook': {'before_run': 1}}]), 'hooks.EMAHook.before_run is 1'),
    'other classes': (
        lambda checkpoint: [
            checkpoint[part].update({key: checkpoint[part][key][:7] for key in checkpoint[part] if 'head.fc' in key})
            for part in ('state_dict', 'ema_state_dict')
        ],
        'head.fc.weight is a tensor of shape [7, 32]',
    ),
}


@pytest.mark.parametrize('name', MISFITS)
def test_a_misfit_is_named(resume, checkpoint, name):
    change, message = MISFITS[name]
    change(unsealed(checkpoint))
    code, text = resume(checkpoint)
    assert code == 1 and message in only_line(text), text


def test_a_file_is_read_once_and_only_with_its_digest(resume, checkpoint, monkeypatch):
    reads = []
    original = training.read_checkpoint
    monkeypatch.setattr(training, 'read_checkpoint', lambda path: reads.append(path) or original(path))
    code, text = resume(unsealed(copy.deepcopy(checkpoint)), '--seed', 0)
    assert code == 0 and len(reads) == 1, text
    with pytest.raises(ValueError, match='edited.pth: it has no digest.*--without-digest resumes from it'):
        training.read_training_checkpoint(reads[0])


def test_a_dry_run_looks_at_the_file(resume, checkpoint, tmp_path):
    code, text = resume(copy.deepcopy(checkpoint), '--dry-run')
    assert code == 0 and text.count('\n') == 1 and 'all of it builds' in text and not (tmp_path / 'run').exists()
    edit('optimizer|state|5', ...)(unsealed(checkpoint))
    code, text = resume(checkpoint, '--dry-run')
    assert code == 1 and 'optimizer.state has nothing for parameter 5' in only_line(text)


def test_code_in_a_checkpoint_is_not_run(resume, checkpoint, tmp_path):
    checkpoint['meta']['config'] = f'open({str(tmp_path / "trace")!r}, "w")'
    code, text = resume(checkpoint)
    assert code == 0, text
    assert not (tmp_path / 'trace').exists()


def test_mmengines_own_runner_does_not_run_it_either(checkpoint, tmp_path):
    from mobileone_ext.recipe.checkpointing import PlainCheckpointHook

    checkpoint['meta']['config'] = 'text'
    PlainCheckpointHook().after_load_checkpoint(None, checkpoint)
    assert 'config' not in checkpoint['meta']


def test_a_value_that_fits_but_is_not_the_saved_one(resume, checkpoint):
    checkpoint['optimizer']['param_groups'][0]['lr'] *= 2
    code, text = resume(checkpoint)
    assert code == 1 and 'optimizer is not what the run saved (edited?); --without-digest' in only_line(text)
    code, _ = resume(checkpoint, '--without-digest')
    assert code == 0


def test_a_finished_run_says_so(resume, tiny_run):
    code, text = resume((tiny_run / 'epoch_4.pth').read_bytes())
    assert code == 0 and 'the run is finished: 4 of 4 epochs' in text, text


def test_another_batch_size_is_told(resume, checkpoint):
    code, text = resume(checkpoint, config=['train_dataloader.batch_size=64'])
    assert code == 0
    assert 'resumed with 1 x 64 images a step instead of 1 x 32 (processes x batch size)' in text, text
    assert 'an epoch has 4 steps instead of 8' in text


def test_what_a_step_is():
    run = dict(batch_size=32, world_size=1, steps_per_epoch=8)
    assert changed_step(run, dict(run), 3) is None
    assert changed_step(None, run, 3) is None
    assert '2 x 32 images a step instead of 1 x 32' in changed_step(run, dict(run, world_size=2, steps_per_epoch=4), 3)


def test_the_config_can_ask_for_resuming(run_tool, digits, tmp_path, tiny_run):
    (tmp_path / 'epoch_3.pth').write_bytes((tiny_run / 'epoch_3.pth').read_bytes())
    options = [*data_options(digits), 'resume=True']
    code, text = run_tool('train', TINY, '--work-dir', tmp_path, '--no-validate', '--cfg-options', *options)
    assert code == 0 and 'resumed epoch: 3' in text, text
    assert training.read_training_checkpoint(tmp_path / 'epoch_4.pth')['meta']['seed'] == 0


def places(value, path=()):
    """The paths of everything in nested containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(checkpoint, rng):
    """Change one thing of ``checkpoint`` in place, wherever it may be; the kind of change."""
    part = rng.choice(list(checkpoint))
    path = rng.choice([p for p in places(checkpoint) if p[0] == part and p[:2] != ('meta', 'digest')])
    kind = rng.choice(['delete', 'rename', 'retype', 'reshape', 'nan', 'classes'])
    if kind in ('reshape', 'nan'):
        tensors = [p for p in places(checkpoint) if isinstance(at(checkpoint, p), torch.Tensor)]
        path = rng.choice([p for p in tensors if at(checkpoint, p).numel()])
    parent, key = at(checkpoint, path[:-1]), path[-1]
    if kind == 'delete':
        del parent[key]
    elif kind == 'rename':
        if isinstance(parent, list):
            parent.insert(0, parent.pop(key))
            kind = 'reorder'
        else:
            parent[f'{key}x'] = parent.pop(key)
    elif kind == 'retype':
        number = (int, float)
        values = ['text', None, -1, 2.5, [], {}, (), True, [1, 2], {'a': 1}, torch.zeros(2)]
        same = number if isinstance(parent[key], number) else type(parent[key])
        parent[key] = rng.choice([value for value in values if not isinstance(value, same)])
    elif kind == 'reshape':
        tensor = parent[key]
        parent[key] = rng.choice([tensor[None], torch.cat([tensor.reshape(-1)] * 2), tensor.reshape(-1)[:0]])
    elif kind == 'nan':
        tensor = parent[key]
        values = tensor.double().reshape(-1).clone()
        values[rng.randrange(len(values))] = rng.choice([float('nan'), float('inf')])
        values = values.reshape(tensor.shape)
        parent[key] = values.to(tensor.dtype) if tensor.is_floating_point() else values
    else:
        count = rng.choice([1, 7, 1000])
        for state in ('state_dict', 'ema_state_dict'):
            for name in [name for name in checkpoint[state] if 'head.fc' in name]:
                shape = (count, *checkpoint[state][name].shape[1:])
                checkpoint[state][name] = torch.zeros(shape)
    return kind


def at(value, path):
    for key in path:
        value = value[key]
    return value


@pytest.fixture
def refusal(resume, tiny_run, tmp_path, monkeypatch):
    """``refusal(file, without_digest)`` is what a run says of it before its hooks begin; None if it fits."""
    fits = []
    monkeypatch.setattr(runner, 'check_fits_run', lambda path, checkpoint, *rest: fits.append(rest))
    assert resume((tiny_run / 'epoch_3.pth').read_bytes())[0] == 0
    monkeypatch.undo()
    (tmp_path / 'run' / 'epoch_4.pth').unlink()

    def check(path, without_digest):
        try:
            checkpoint = training.read_training_checkpoint(path, without_digest)
            training.step_as_built(checkpoint, fits[0][0])
            training.check_fits_run(path, checkpoint, *fits[0])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return str(error)
        return None

    return check


@pytest.mark.parametrize('seeds', [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_checkpoints(resume, refusal, tiny_run, tmp_path, seeds):
    expected = torch.load(tiny_run / 'epoch_4.pth', weights_only=True)
    outcomes = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        if rng.random() < 0.1:
            content = (tiny_run / 'epoch_3.pth').read_bytes()
            content, kind = content[: rng.randrange(len(content))], 'truncate'
        else:
            content = torch.load(tiny_run / 'epoch_3.pth', weights_only=True)
            kind = mutate(content, rng)
            if seed % 2 and isinstance(content.get('meta'), dict):  # the form alone must tell
                content['meta'].pop('digest', None)
        path = tmp_path / 'mutated.pth'
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        message = refusal(path, isinstance(content, dict) and not has_digest(content))
        code = 1
        if message is None or seeds is FEW:
            code, text = resume(content)
            assert code == 1 or message is None, f'seed {seed} ({kind}): {text}'
            if code:
                assert only_line(text), f'seed {seed} ({kind}): {text}'
        if not code:
            actual = torch.load(tmp_path / 'run' / 'epoch_4.pth', weights_only=True)
            for part in ('state_dict', 'ema_state_dict'):
                for key, tensor in expected[part].items():
                    assert torch.equal(actual[part][key], tensor), f'seed {seed} ({kind}): {part}.{key}'
            (tmp_path / 'run' / 'epoch_4.pth').unlink()
        outcomes[kind, 'went on' if code == 0 else 'refused'] += 1
    print(dict(outcomes))
    assert seeds is FEW or all(
        outcomes[kind, 'refused'] for kind in ('delete', 'reshape', 'nan', 'classes', 'truncate')
    )


def test_mmengines_loaders_are_its_own_outside_of_a_run(tmp_path):
    from hostile import Bomb
    from mmengine.runner import CheckpointLoader
    from mmengine.runner.checkpoint import load_from_local

    assert CheckpointLoader._schemes[''] is load_from_local
    torch.save(dict(state_dict={}, call=Bomb(tmp_path / 'trace')), tmp_path / 'bad.pth')
    with runner.reading_safely(), pytest.raises(ValueError, match=r'bad.pth: holds pickled code \(posix.mkdir\)'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'bad.pth'))
    assert CheckpointLoader._schemes[''] is load_from_local and not (tmp_path / 'trace').exists()


@pytest.mark.parametrize('fused', [True, False])
def test_a_run_goes_on_by_another_implementation_of_the_step(resume, checkpoint, fused):
    checkpoint['optimizer']['param_groups'][0]['fused'] = not fused
    option = f'optim_wrapper.optimizer.fused={fused}'
    code, text = resume(checkpoint, '--epochs', 5, '--without-digest', config=[option])
    assert code == 0, text


def optimizers() -> list[str]:
    """Those that torch, mmengine and mmpretrain register and that step without a closure or processes."""
    import mmpretrain.engine  # noqa: F401
    from mmengine.registry import OPTIMIZERS
    from mmpretrain.registry import OPTIMIZERS as THEIRS

    others = {'Optimizer', 'LBFGS', 'SparseAdam', 'ZeroRedundancyOptimizer', 'Muon'}  # Muon takes matrices alone
    return sorted({*OPTIMIZERS.module_dict, *THEIRS.module_dict} - others)


@pytest.mark.parametrize('kind', optimizers())
def test_the_state_of_every_optimizer_is_what_its_step_makes(kind):
    """Some keep rows and columns instead of whole tensors, and numbers in their groups from the first step on."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    wrapper = build_optim_wrapper(net, dict(type='OptimWrapper', optimizer=dict(type=kind, lr=0.01)))
    state = copy.deepcopy(wrapper.state_dict()['state'])
    before = after_a_step(wrapper)
    assert str(wrapper.state_dict()['state']) == str(state) and all(p.grad is None for p in net.parameters())
    wrapper.update_params(net(torch.randn(2, 3, 8, 8)).square().sum())
    saved = to_plain(wrapper.state_dict())
    checkpoint = dict(meta=dict(iter=1, epoch=1, seed=0), state_dict=net.state_dict(), optimizer=saved)
    expected = dict(state_dict=net.state_dict(), optimizer=before)
    check_fits_run('a.pth', checkpoint, expected, 2)
    tensors = [key for key, value in saved['state'].get(0, {}).items() if value.numel() > 1]
    for key in tensors:
        broken = dict(saved, state={**saved['state'], 0: dict(saved['state'][0], **{key: torch.zeros(5)})})
        with pytest.raises(ValueError, match=rf'optimizer\.state\[0\]\.{key} '):
            check_fits_run('a.pth', dict(checkpoint, optimizer=broken), expected, 2)
