"""Two thousand broken checkpoints: each gives a ValueError or the right weights, and never runs code."""

import io
import os
import random
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hostile import Bomb
from safetensors.torch import save
from test_load import LAYOUTS, equal, tiny

from mobileone_ext.checkpoints.convert import convert
from mobileone_ext.checkpoints.load import load_weights, to_layout

SECONDS_A_FILE = 20
KIB_MORE = 1 << 20
FEW, MANY = 160, 2000
MARKER = 'marker'


def torch_file(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


# What writes a state dict to bytes; the first kind has checksums, the others have none.
WRITERS = {
    'zip': torch_file,
    'legacy': lambda content: torch_file(content, _use_new_zipfile_serialization=False),
    'safetensors': lambda content: save({key: tensor.contiguous() for key, tensor in content.items()}),
}


def flip_bits(data, rng):
    data = bytearray(data)
    # Half of the flips go to the first kilobytes, where headers and pickles lie.
    reach = len(data) if rng.random() < 0.5 else min(len(data), 20000)
    for _ in range(rng.choice([1, 1, 3, 30])):
        data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(data, rng):
    return data[: rng.randrange(len(data))]


def garble(data, rng):
    start = rng.randrange(len(data))
    middle = rng.randbytes(rng.choice([1, 8, 300]))
    return data[:start] + middle + data[start + rng.choice([0, len(middle)]) :]


def rename(state, rng):
    key = rng.choice(list(state))
    new = rng.choice(
        [key + 'x', key[1:], key.replace('stage', 'stge'), key.replace('.', '..', 1), 'x' * 10**5, '', key.upper()]
    )
    state[new] = state.pop(key)


def remove(state, rng):
    for key in rng.sample(list(state), rng.choice([1, 2, len(state) // 2])):
        del state[key]


def change_dtype(state, rng):
    key = rng.choice(list(state))
    dtype = rng.choice([torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int64])
    state[key] = state[key].to(dtype)


def not_finite(state, rng):
    key = rng.choice([key for key, tensor in state.items() if tensor.is_floating_point()])
    state[key] = state[key].clone()
    state[key].view(-1)[rng.randrange(state[key].numel())] = rng.choice([float('nan'), float('inf'), -float('inf')])


def change_shape(state, rng):
    key = rng.choice([key for key, tensor in state.items() if tensor.numel() > 1])
    tensor = state[key]
    state[key] = rng.choice([tensor[:-1], tensor[None], tensor.flatten()[0], torch.cat([tensor, tensor]), tensor[:0]])


def huge_shape(state, rng):
    key = rng.choice([key for key, tensor in state.items() if tensor.dim()])
    sizes = [1 << rng.choice([31, 40]), *(rng.choice([1, 64]) for _ in state[key].shape[1:])]
    state[key] = state[key].flatten()[:1].as_strided(sizes, [0] * len(sizes))


def not_a_tensor(state, rng):
    state[rng.choice(list(state))] = rng.choice(['text', 7, None, [1, 2], {'a': 1}, torch.Size([3])])


def not_dense(state, rng):
    key = rng.choice([key for key, tensor in state.items() if tensor.dim()])
    state[key] = state[key].to_sparse()


def pickled_code(state, rng):
    state[rng.choice([*state, 'extra', 'meta'])] = rng.choice([Bomb(MARKER), torch.nn.Linear(1, 1)])


MUTATE_BYTES = (flip_bits, truncate, garble)
MUTATE_TENSORS = (rename, remove, change_dtype, not_finite, change_shape)
MUTATE_OBJECTS = (huge_shape, not_a_tensor, not_dense, pickled_code)  # safetensors cannot hold these


def broken_file(states, rng):
    """(mutation, writer, form, bytes) of one broken file."""
    writer, form = rng.choice(list(WRITERS)), rng.choice(list(states))
    state = to_layout(states[form], rng.choice(LAYOUTS))
    mutation = rng.choice(MUTATE_BYTES + MUTATE_TENSORS + (MUTATE_OBJECTS if writer != 'safetensors' else ()))
    if mutation not in MUTATE_BYTES:
        mutation(state, rng)
    if writer != 'safetensors' and rng.random() < 0.3:
        state = {'state_dict': state, 'meta': {'epoch': 3}}
    data = WRITERS[writer](state)
    return mutation, writer, form, mutation(data, rng) if mutation in MUTATE_BYTES else data


@pytest.fixture(scope='module')
def states():
    return {form: tiny(form).state_dict() for form in ('branched', 'fused')}


@pytest.mark.filterwarnings('ignore:Validating sparse tensor')
@pytest.mark.parametrize('seeds', [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.slow)])
def test_broken_files(tmp_path, monkeypatch, states, seeds):
    monkeypatch.chdir(tmp_path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = Counter()
    for seed in seeds:
        mutation, writer, form, data = broken_file(states, random.Random(seed))
        Path('src').write_bytes(data)
        start = time.perf_counter()
        try:
            convert('src', 'dst.pth', 'mmpretrain')
        except ValueError as error:
            assert str(error).startswith('src: ') and len(str(error)) < 1000, f'seed {seed}: {str(error)[:1000]}'
            assert os.listdir() == ['src'], f'seed {seed}'
            outcomes[mutation.__name__, 'refused'] += 1
        else:
            actual = load_weights('dst.pth').state
            # Without checksums a flipped bit of a weight is another weight.
            undetectable = mutation in MUTATE_BYTES and writer != 'zip'
            same_shapes = {k: t.shape for k, t in actual.items()} == {k: t.shape for k, t in states[form].items()}
            assert same_shapes if undetectable else equal(actual, states[form]), f'seed {seed}: {mutation.__name__}'
            outcomes[mutation.__name__, 'read'] += 1
            os.remove('dst.pth')
            os.remove('dst.pth.md')
        assert time.perf_counter() - start < SECONDS_A_FILE, f'seed {seed}'
    print(dict(outcomes))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < KIB_MORE
    for mutation in (not_finite, change_shape, *MUTATE_OBJECTS):
        assert outcomes[mutation.__name__, 'refused'] and not outcomes[mutation.__name__, 'read']
