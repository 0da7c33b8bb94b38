"""Pooled features: what the head is given."""

import numpy as np
import torch
from conftest import TINY, data_options

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
