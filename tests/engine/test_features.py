"""Pooled features: what the head is given."""

from pathlib import Path

import numpy as np
import torch
from conftest import TINY, data_options, only_line

from mobileone_ext import cli
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.deploy import fuse
from mobileone_ext.engine.features import features_of
from mobileone_ext.engine.finetuning.scores import score_photos
from mobileone_ext.engine.runner import Runner


def test_the_linear_layer_on_features_gives_the_network_s_scores(tiny_run, digits):
    """In float64, of every photo of the test set and in its order."""
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)))
    checkpoint = str(next(tiny_run.glob('epoch_*.pth')))
    model = fuse.load_model(config, load_weights(checkpoint))
    paths, features = features_of(model, Runner.build_dataloader(config.test_dataloader))
    expected = score_photos(config, checkpoint)
    fc = model.head.fc
    logits = features.astype(np.float64) @ fc.weight.detach().double().numpy().T + fc.bias.detach().double().numpy()
    assert features.dtype == np.float32 and paths == expected.paths and len(set(paths)) == len(paths) > 100
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), expected.scores, atol=1e-5)


def test_photos_have_the_features_of_the_config_s_loader_and_find_their_like(tiny_run, digits, run_tool, tmp_path):
    """In one file with paths and names; the same photo is its own nearest, and TensorBoard reads what is written."""
    photos = sorted((digits / 'val').glob('*/*.png'))[::12]
    like = photos[7]
    out, board = tmp_path / 'features.npz', tmp_path / 'board'
    network = tiny_run / 'epoch_4.pth'
    options = ('--network', network, '--out', out, '--like', like, '--top', 3, '--projector', board)
    code, text = run_tool('features', *photos, *options)
    assert code == 0, text
    written = np.load(out)
    assert written['paths'].tolist() == [str(path) for path in photos]
    assert written['names'].tolist() == [path.parent.name for path in photos]
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)))
    model = fuse.load_model(config, load_weights(network))
    paths, features = features_of(model, Runner.build_dataloader(config.test_dataloader))
    of_path = {Path(path).resolve(): row for path, row in zip(paths, features)}
    expected = np.stack([of_path[path.resolve()] for path in photos])
    np.testing.assert_allclose(written['features'], expected, rtol=1e-4, atol=1e-5)
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(expected), torch.from_numpy(expected[7])[None])
    best = cosines.argsort(descending=True)[:3]
    shown = [line for line in text.splitlines() if line.startswith('  ')]
    assert shown == [f'  {cosines[row]:.3f}  {photos[row]}' for row in best] and shown[0].startswith('  1.000')
    rows = next(board.rglob('metadata.tsv')).read_text().splitlines()
    assert rows[0] == 'name\tpath' and len(rows) == len(photos) + 1
    assert len(next(board.rglob('tensors.tsv')).read_text().splitlines()) == len(photos)


def test_features_of_what_is_no_photo(tiny_run, digits, run_tool, tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'no photo')
    photo = next((digits / 'val').rglob('*.png'))
    options = ('--network', tiny_run, '--out', tmp_path / 'features.npz')
    code, text = run_tool('features', photo, tmp_path / 'broken.png', *options)
    assert code == 0 and 'skipped' in text and len(np.load(tmp_path / 'features.npz')['paths']) == 1
    for arguments, word in (
        ((photo, '--like', tmp_path / 'broken.png', *options), 'broken.png: not a readable image'),
        ((photo, '--network', tiny_run, '--out', 'x.csv'), 'written to *.npz'),
        ((tmp_path / 'none', *options), 'no such file or folder'),
    ):
        code, text = run_tool('features', *arguments)
        assert code == 1 and word in only_line(text)
