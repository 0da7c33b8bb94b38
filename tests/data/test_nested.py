"""Data sets inside data sets are found in order, as configs and as built of them."""

from mmengine.config import Config
from mmpretrain.registry import DATASETS
from PIL import Image

from mobileone_ext.data.nested import datasets_of, innermost


def test_configs_and_what_is_built_of_them_are_walked_alike(tmp_path):
    for name in 'abcd':
        (tmp_path / name / 'x').mkdir(parents=True)
        for number in range(4):
            Image.new('RGB', (8, 8)).save(tmp_path / name / 'x' / f'{number}.png')
    a, b, c, d = (dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path / name), pipeline=[]) for name in 'abcd')
    config = dict(
        type='ConcatDataset',
        datasets=[
            a,
            dict(
                type='RepeatDataset', times=2, dataset=dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=b)
            ),
            dict(type='mmpretrain.KFoldDataset', num_splits=2, dataset=c),
            dict(type='ConcatDataset', datasets=[d]),
        ],
    )
    assert list(innermost(config)) == [a, b, c, d]
    built = innermost(DATASETS.build(config))
    assert [dataset.data_root for dataset in built] == [inner['data_root'] for inner in (a, b, c, d)]

    loaders = Config(dict(train_dataloader=dict(dataset=config), val_dataloader=None, test_dataloader=dict(dataset=a)))
    options = [option for _, option in datasets_of(loaders, 'train_dataloader', 'val_dataloader', 'test_dataloader')]
    assert options == [
        'train_dataloader.dataset.datasets.0',
        'train_dataloader.dataset.datasets.1.dataset.dataset',
        'train_dataloader.dataset.datasets.2.dataset',
        'train_dataloader.dataset.datasets.3.datasets.0',
        'test_dataloader.dataset',
    ]


def test_a_key_that_holds_a_name_is_no_data_set():
    named = dict(type='Own', dataset='cifar10')
    assert list(innermost(named)) == [named]
