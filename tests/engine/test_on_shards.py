"""A run on tar shards, killed and resumed, ends with the bits of an undisturbed one on folders."""

import pytest
from killing import train
from sharding import write_shards
from test_kills import assert_same_files


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_on_shards_as_undisturbed_on_folders(digits, tmp_path, processes):
    for part in ('train', 'val'):
        write_shards(digits / part, tmp_path / 'shards' / part)
    options = dict(max_keep_ckpts=1, save_best='auto')
    assert not any(train(tmp_path / 'folders', digits, options, processes=processes))
    run = tmp_path / 'run', tmp_path / 'shards', options
    assert train(*run, 'in the optimizer step', processes)[0] == -9, 'the moment did not come'
    assert (tmp_path / 'shards/train/train-000.tar.index.json').exists()
    assert not any(train(*run, processes=processes))
    assert_same_files(tmp_path / 'run', tmp_path / 'folders')
