"""What tools/train.py --dry-run does: build all of a run but its images, and save and load a checkpoint in memory.

tools/ablate.py does so for every variant, with its images found, and takes a step on a photograph.
"""

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, ReduceOnPlateauParamScheduler
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import DATASETS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..block import MobileOneBlock
from ..config import building, require_data
from ..data.check import check_loaders, prepare_data
from ..data.classes import LOADERS, is_multi_label
from ..data.nested import innermost
from ..recipe.checkpointing import check_saving
from ..recipe.run import unwrap
from ..text import one_line
from .runner import Runner

BATCHES = 20  # in an epoch without images


def photograph() -> str:
    """The file of a photograph that comes with matplotlib, 512 x 600 pixels."""
    return str(get_sample_data('grace_hopper.jpg', asfileobj=False))


class NoImages(Dataset):
    """Stands for a data set of a kind of its own, of which mmengine's way of reading it last is not known."""

    def __init__(self, length: int, **metainfo):
        self.metainfo, self.length = metainfo, length

    def __len__(self) -> int:
        return self.length


def without_images(dataset: dict, length: int) -> None:
    """Let mmengine build all of this data set but its list of images, which is one photograph ``length`` times."""
    kind = DATASETS.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
    if kind is None:  # mmengine says so where it builds it
        return
    if isinstance(kind, type) and issubclass(kind, BaseDataset):
        listed = dict(img_path=photograph(), gt_label=0)
        dataset['type'] = type(kind.__name__, (kind,), dict(load_data_list=lambda self: [dict(listed)] * length))
        if isinstance(dataset.get('indices'), Sequence):  # of images that are not there: as many
            dataset['indices'] = len(dataset['indices'])
        return
    metainfo = {**getattr(kind, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    dataset.clear()
    dataset.update(type=NoImages, length=length, **metainfo)


class DryRunner(Runner):
    """A Runner without images, on the CPU, that says nothing and leaves nothing."""

    @classmethod
    def build_dataloader(cls, dataloader: dict, *args: Any, **kwargs: Any) -> DataLoader:
        dataloader = copy.deepcopy(dataloader)
        for dataset in innermost(dataloader['dataset']):
            without_images(dataset, BATCHES * dataloader.get('batch_size', 1))
        return cls.without_workers(dataloader, *args, **kwargs)

    @staticmethod
    def without_workers(*args: Any, **kwargs: Any) -> DataLoader:
        """The loader that trains, which starts no process."""
        loader = Runner.build_dataloader(*args, **kwargs)
        loader.num_workers = 0
        return loader

    def dump_config(self) -> None:
        """Nothing: a dry run has no work dir to keep it in."""

    def _log_env(self, env_cfg: dict) -> None:
        """Nothing: asking compilers for their versions takes longer than all else."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """``model`` where it is, as the GPU is for those who train; batch norm of several processes is that of one."""
        return revert_sync_batchnorm(model)


class DryRunnerOfData(DryRunner):
    """A DryRunner that finds the images of its config, and reads none."""

    @classmethod
    def build_dataloader(cls, *args: Any, **kwargs: Any) -> DataLoader:
        return cls.without_workers(*args, **kwargs)


def build_training(config: Config, work_dir: str, data: bool) -> DryRunner:
    """A run of ``config`` on the CPU with all that its training needs built, as ``Runner.train`` does it.

    Args:
        data: with its images found, of which none is read.
    """
    if config.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper':  # needs a GPU
        kept = {key: value for key, value in config.optim_wrapper.items() if key not in ('loss_scale', 'dtype')}
        config.optim_wrapper = dict(kept, type='OptimWrapper')
    config.load_from, config.resume = None, False
    config.log_level, config.work_dir, config.experiment_name = 'WARNING', work_dir, f'dry_run_{id(config)}'
    runner = (DryRunnerOfData if data else DryRunner).from_cfg(config)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return runner


def dry_run(
    config: Config, name: str, data: bool = False, step: bool = False, checkpoint: dict | None = None
) -> DryRunner:
    """Build the run of ``config``, take a step without gradients, save and load what it leaves.

    Weights are not initialized, so none are downloaded. All is done on the CPU, and mixed precision left out.

    Args:
        data: with its images found, of which none is read.
        step: a whole one, on a photograph, where the network is a classifier.
        checkpoint: what is in the file ``config.load_from``, which the run goes on from.

    Raises:
        ValueError: naming what does not build, does not go on, or what a checkpoint could not hold.
    """
    require_data(config, 'train_dataloader')
    source, config = config.get('load_from'), copy.deepcopy(config)
    if data:
        prepare_data(config, *(name for name in LOADERS if config.get(name)))
    with tempfile.TemporaryDirectory() as work_dir, building(name):
        runner = build_training(config, work_dir, data)
        for part in ('val', 'test'):
            loop = getattr(runner, f'_{part}_loop')
            if loop is not None:
                setattr(runner, f'_{part}_loop', getattr(runner, f'build_{part}_loop')(loop))
        runner.call_hook('before_run')
        if data:
            check_loaders(runner.loaders(), config)
        if checkpoint is not None:
            runner.checkpoint, runner._load_from = checkpoint, source
            if runner._classes is None:  # folders that are not looked at name them
                checkpoint['meta']['dataset_meta'] = runner.train_dataloader.dataset.metainfo
            runner.resume(source)
        runner.call_hook('before_train')
        if step and isinstance(runner.model, ImageClassifier):
            _step_on_a_photo(runner)
        _step(runner)
        saved = check_saving(runner)
        runner.optim_wrapper.load_state_dict(saved['optimizer'])
        for scheduler, state in zip(_schedulers(runner), _listed(saved.get('param_schedulers'))):
            scheduler.load_state_dict(state)
        missing = set(saved['state_dict']) ^ set(unwrap(runner.model).state_dict())
        if missing:
            raise ValueError(f'a checkpoint does not have the keys of its model: {sorted(missing)[:3]}')
    return runner


def missing_data(config: Config) -> str | None:
    """What training would say of data that is not there; ValueError for data that is, and does not fit."""
    try:
        prepare_data(copy.deepcopy(config), 'train_dataloader', 'val_dataloader')
    except FileNotFoundError as error:
        return one_line(error)
    return None


def describe(runner: DryRunner) -> str:
    """One line on what was built."""
    model = unwrap(runner.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f'{type(model).__name__} with {parameters:,} parameters{used_branches(model)}, '
        f'{len(runner.optim_wrapper.param_groups)} groups of parameters, {len(_schedulers(runner))} schedulers, '
        f'{len(runner.hooks)} hooks: all of it builds, and a checkpoint saves and loads'
    )


def used_branches(model: nn.Module) -> str:
    """In how many of its blocks, and of which kernels, a MobileOne has each type of branch; empty for any other."""
    blocks = [block for block in model.modules() if isinstance(block, MobileOneBlock) and not block.deploy]
    kernels: dict[str, list[int]] = {}
    for block in blocks:
        for name in block.branch_types():
            kernels.setdefault(name, []).append(block.shape.kernel_size)
    used = (
        f'{name} in {len(sizes)} ({" and ".join(f"{size}x{size}" for size in sorted({*sizes}))})'
        for name, sizes in kernels.items()
    )
    return f'; of {len(blocks)} blocks, {", ".join(used)};' if blocks else ''


def _step_on_a_photo(runner: DryRunner) -> None:
    """One step of the optimizer on a batch of one photograph, as training would see it."""
    pixels = np.array(Image.open(photograph()))
    shape, label = pixels.shape[:2], [0] if is_multi_label(runner.cfg) else 0
    photo = dict(img_path=photograph(), img=pixels, img_shape=shape, ori_shape=shape, gt_label=label)
    dataset = next(innermost(runner.train_dataloader.dataset))
    try:
        samples = [dataset.pipeline(dict(photo)) for _ in range(2)]
    except KeyError:  # it asks for more than a photo and its label
        return
    batch = runner.model.data_preprocessor(pseudo_collate(samples), training=True)
    # A student's teacher has no weights yet.
    losses = ImageClassifier.loss(runner.model, batch['inputs'], batch['data_samples'])
    runner.optim_wrapper.update_params(runner.model.parse_losses(losses)[0])


def _step(runner: Runner) -> None:
    """One step of the optimizer with a gradient of zeros for one parameter of each group, and of the schedulers."""
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        return
    for group in runner.optim_wrapper.param_groups:
        for parameter in group['params'][:1]:
            parameter.grad = torch.zeros_like(parameter)
    runner.optim_wrapper.step()
    for scheduler in _schedulers(runner):
        if not isinstance(scheduler, ReduceOnPlateauParamScheduler):
            scheduler.step()


def _schedulers(runner: Runner) -> list:
    return _listed(runner.param_schedulers)


def _listed(value: Any) -> list:
    """``value``, a list or a dict of lists (one for each optimizer), as one list."""
    if isinstance(value, dict):
        return [item for one in value.values() for item in one]
    return list(value or [])
