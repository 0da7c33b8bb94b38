"""What tools/test.py does: build the network that a checkpoint needs, load it strictly, measure it."""

from mmengine.config import Config

from ..checkpoints.load import Weights, load_strict
from ..data.check import check_data
from ..deploy.compare import refuse_not_finite
from ..recipe.wrapper import unwrap
from .runner import Runner


def evaluate(config: Config, weights: Weights, name: str) -> dict[str, float]:
    """Metrics of ``weights`` on the config's test set, with ``num_images``.

    Args:
        config: as for training; its ``work_dir`` gets the log.
        name: of the checkpoint, for messages.

    Raises:
        ValueError: for missing data, weights of another network, or outputs that are NaN or infinite.
    """
    check_data(config, 'test_dataloader')
    config.model.backbone.deploy = weights.form == 'fused'
    config.load_from, config.resume = None, False
    config.custom_hooks = [hook for hook in config.get('custom_hooks', []) if hook['type'] != 'EMAHook']
    runner = Runner.from_cfg(config)
    model = unwrap(runner.model)
    load_strict(model, weights, name)
    model.head.register_forward_hook(refuse_not_finite(name))
    metrics = runner.test()
    return {**metrics, 'num_images': len(runner.test_dataloader.dataset)}
