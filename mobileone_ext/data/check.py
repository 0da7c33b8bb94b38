"""Is the data what the config says? Asked before a run starts, answered in one line.

What can be put right without a doubt is put right and said: labels of another folder's
classes by name, top-k of more classes than there are.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmpretrain.datasets import CustomDataset as MmpretrainDataset
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler

from ..files import suffix_of
from ..provenance import rank
from ..text import quoted
from .classes import (
    LOADERS,
    annotation_file,
    are_imagenet,
    are_wordnet,
    check_same,
    dataset_class,
    given_names,
    names_of,
    num_classes,
    read_json,
    read_lines,
    scanned_folder,
    twins_note,
)
from .dataset import CustomDataset, match_folders
from .images import Found, class_folders, images_below, left_out_note, names_of_folders, photos_by_folder, spread
from .nested import datasets_of, innermost
from .parts import check_are_classes

OWN_DATASET = 'mobileone_ext.CustomDataset'
LISTED = 2000  # so many files of an annotation file are looked for


def check_data(config: Config, *loaders: str, classes: Sequence[str] | None = None) -> None:
    """Check the data of ``loaders`` (``'train_dataloader'``, ...) of a config, and let their labels agree by name.

    mmpretrain's ``CustomDataset`` is replaced by ours, which takes the same arguments, and so is one that is bound to
    as many classes as the head does not have (``ImageNet``).

    Args:
        classes: names of the outputs of the weights to be measured, if known; by default the training set's.

    Raises:
        ValueError: naming what is missing or does not fit, and the option or the
            layout that would; OSError for a file that cannot be read.
    """
    count = num_classes(config)
    for dataset, _ in datasets_of(config, *LOADERS):
        bound = getattr(dataset_class(dataset), 'METAINFO', {}).get('classes')
        if not bound or count not in (None, len(bound)):
            read_by_files(dataset)
    reference = _Reference.of(config, classes)
    for name in loaders:
        for dataset, option in datasets_of(config, name):
            training = name == 'train_dataloader'
            some_will_do = not training and len(reference.classes or ()) == count
            _check_dataset(dataset, option, count, training, some_will_do)
            reference.apply_to(dataset, option)
        if name != 'train_dataloader' and config.get(name) and config[name].get('drop_last'):
            config[name]['drop_last'] = False
            say(f'{name}.drop_last=True would leave images out of the figures: it is ignored')
    for name in loaders:
        if name != 'train_dataloader':
            fit_metrics(config, name.replace('dataloader', 'evaluator'), count)


def read_by_files(dataset: dict) -> None:
    """Let ours read a data set that mmpretrain binds to classes of their own (``ImageNet``), from the same files."""
    kind = dataset_class(dataset)
    if not (isinstance(kind, type) and issubclass(kind, MmpretrainDataset)) or kind is CustomDataset:
        return
    listed, split = annotation_file(dataset), dataset.pop('split', '')
    dataset['type'] = OWN_DATASET
    if split:
        dataset['data_prefix'] = dataset.get('data_prefix') or split
    if listed and not dataset.get('ann_file'):
        dataset['ann_file'] = f'meta/{split}.txt'


def say(line: str) -> None:
    """Print a line, once for all processes of a run."""
    if rank() == 0:
        print(line, flush=True)


class _Reference:
    """What labels stand for: ``classes`` in their order, and the ``folders`` of the training set if named otherwise."""

    def __init__(self, classes: Sequence[str] | None, folders: Sequence[str] | None, source: str):
        self.classes, self.folders, self.source = classes, folders, source

    @classmethod
    def of(cls, config: Config, classes: Sequence[str] | None) -> '_Reference':
        """The checkpoint's ``classes``, or those of the config's training set, if it is there."""
        train = next(datasets_of(config, 'train_dataloader'), (None, ''))[0]
        names = names_of(train) if train else None
        folders = None
        folder = scanned_folder(train) if train else None
        if names and folder is not None and folder.is_dir():
            present = names_of_folders(class_folders(folder))
            if train.get('folders') or not set(present) & set(names):
                folders = train.get('folders') or present
        if not classes or (names and list(names) == list(classes)):
            return cls(names, folders, 'the training set')
        return cls(classes, None, 'the checkpoint')

    def apply_to(self, dataset: dict, option: str) -> None:
        """Label ``dataset`` by these names, or raise ValueError if it has others."""
        names, folder = names_of(dataset), scanned_folder(dataset)
        where = str(folder or annotation_file(dataset) or option)
        by_folder = dataset_class(dataset) is CustomDataset and folder is not None
        if not by_folder or given_names(dataset) or not self.classes or not names:
            folders = names_of_folders(class_folders(folder)) if by_folder else []
            for_show = folders and not set(folders) & set(names) and not dataset.get('folders')
            if not for_show or folders not in ([*(self.classes or ())], self.folders):
                check_same(names, self.classes, where, self.source)
            return
        try:
            check_same(names, self.classes, where, self.source)
            return
        except ValueError as error:
            expected = self.classes if set(names) <= set(self.classes) else self.folders
            if not expected or not set(names) <= set(expected):
                raise ValueError(f'{error}; a folder has the name of its class') from None
        match_folders(names, expected, folder, exact=True)
        dataset['classes'] = list(self.classes)
        if expected is self.folders:
            dataset['folders'] = list(self.folders)
        present = set(names)
        absent = [name for name in expected if name not in present]
        if absent:
            say(f'{folder}: has no folders for {len(absent)} of the {len(expected)} classes: {quoted(absent)}')
        else:
            say(f'{folder}: labeled in the order of classes of {self.source}')


def _check_dataset(dataset: dict, option: str, num_classes: int | None, training: bool, some_will_do: bool) -> None:
    if dataset.get('indices') in (0, [], ()):
        raise ValueError(f'{option}.indices={dataset["indices"]}: leaves no images')
    kind = dataset_class(dataset)
    root, split = dataset.get('data_root'), dataset.get('split', '')
    prefix = dataset.get('data_prefix', '') or split
    if root is None or not isinstance(prefix, str) or '://' in str(root):
        return  # a data set of another kind speaks for itself
    folder, annotations = Path(root, prefix).expanduser(), annotation_file(dataset)
    remedy = (
        f'expected are class folders {folder}/CLASS/*.JPEG, or images in {folder} listed in an annotation file; '
        f'--cfg-options {option}.data_root=DIR (and {option}.ann_file=FILE) names another place'
    )
    for path in (Path(root).expanduser(), folder, annotations or folder):
        if not path.exists():
            raise ValueError(f'{path}: no such data; {remedy}')
    if annotations:
        if isinstance(kind, type) and issubclass(kind, MmpretrainDataset):
            with_label = dataset.get('with_label', True)
            hint = '; --classes-from-data takes the classes from the data' if training else ''
            count = check_annotations(annotations, folder, num_classes if with_label else 0, remedy, hint)
            if hint and with_label and num_classes and count < num_classes:
                say(f'{annotations}: labels 0 .. {count - 1}, and the head has {num_classes} classes{hint}')
        elif suffix_of(annotations) == '.json':
            _check_json(annotations, num_classes)
        return
    extensions = dataset.get('extensions')
    suffixes = [extensions] if extensions else []
    if not any(images_below(folder / name, *suffixes) for name in (*class_folders(folder), '')):
        raise ValueError(f'{folder}: holds no images; {remedy}')
    if scanned_folder(dataset) is None:
        return
    present = class_folders(folder)
    own = kind is CustomDataset  # mmpretrain's number the folders that are there
    if not present:
        raise ValueError(f'{folder}: holds no class folders; {remedy}')
    inside = {}
    if own:
        inside, left_out = photos_by_folder(folder, *suffixes)
        for note in (left_out_note(left_out), twins_note(present)):
            if note:
                say(f'{folder}: {note}')
    if training and not given_names(dataset):
        check_are_classes(folder, inside)
    named = names_of(dataset) or ()
    names = (dataset.get('folders') or named if own else None) or present
    if num_classes and len(names) != num_classes and not (own and some_will_do and len(names) < num_classes):
        own_classes = '--classes-from-data' if training else f'--cfg-options model.head.num_classes={len(names)}'
        raise ValueError(
            f'{folder}: has {len(names)} class folders, the head has {num_classes} classes; '
            f'{own_classes} takes these, {option}.data_root=DIR others'
        )
    hidden = sorted({entry.name for entry in os.scandir(folder) if entry.is_dir()} - set(present))
    if hidden and not own:
        raise ValueError(f'{folder}: {dataset["type"]} takes {quoted(hidden)} for classes; remove these folders')
    if are_imagenet(named) and are_wordnet(present) and len(present) == len(named) and not are_imagenet(present):
        raise ValueError(
            f'{folder}: its WordNet ids are not those of ImageNet, whose names they would get; --cfg-options '
            f'{option}.type=CustomDataset takes the names of the folders'
        )
    if own:
        _check_folders(folder, inside, names, training)


def _check_folders(folder: Path, inside: Mapping[str, Found], names: Sequence[str], training: bool) -> None:
    """Say which classes have no images; refuse them in training."""
    labels = match_folders([*inside], names, folder)
    filled = {labels[name] for name, found in inside.items() if found}
    empty = [
        f'{name} ({found.note})' if found.note else name for name, found in inside.items() if labels[name] not in filled
    ]
    named = {*labels.values()}
    without = [name for label, name in enumerate(names) if label not in named]
    if training and (empty or without):
        raise ValueError(
            f'{folder}: no images of {quoted([*empty, *without])}: a class that is trained needs some; '
            'remove the folder, or add images'
        )
    if empty:
        say(f'{folder}: no images of {quoted(empty)}')


def check_annotations(file: Path, folder: Path, num_classes: int | None, remedy: str = '', too_many: str = '') -> int:
    """Check a text file with a line ``image label`` for each image; how many classes its labels count up to.

    Args:
        folder: the images are named relative to it; some of them are looked for.
        num_classes: labels are 0 .. this - 1; None where that is not known, 0 for lines without labels.
        remedy, too_many: what to do about images that are not there, and about more labels.

    Raises:
        ValueError: naming the file and the first line that is none, a label out of range, an image that is not there.
    """
    images, count = [], 0
    for number, line in enumerate(read_lines(file), 1):
        image, _, label = line.strip().rpartition(' ') if num_classes != 0 else (line.strip(), '', '0')
        if not image or not label.isdecimal():
            raise ValueError(f'{file}, line {number}: {line[:80]!r}: expected is an image and its label, "a/b.jpg 3"')
        if num_classes and int(label) >= num_classes:
            raise ValueError(
                f'{file}, line {number}: label {label}, and the head has {num_classes} classes, '
                f'0 .. {num_classes - 1}{too_many}'
            )
        images.append((number, image))
        count = max(count, int(label) + 1)
    if not images:
        raise ValueError(f'{file}: lists no images; {remedy}')
    for number, image in spread(images, LISTED):
        if not os.path.exists(folder / image):
            raise ValueError(f'{file}, line {number}: no such image {folder / image}; {remedy}')
    return count


def _check_json(file: Path, num_classes: int | None) -> None:
    """Check the labels of an annotation file in OpenMMLab's form."""
    stored = read_json(file)
    images = stored.get('data_list') if isinstance(stored, dict) else None
    if not isinstance(images, list):
        return  # another form, for another data set
    if not images:
        raise ValueError(f'{file}: lists no images')
    for number, image in enumerate(images):
        label = image.get('gt_label') if isinstance(image, dict) else None
        for one in label if isinstance(label, list) else [label]:
            if isinstance(one, int) and num_classes and not 0 <= one < num_classes:
                raise ValueError(f'{file}, image {number}: label {one}, and the head has {num_classes} classes')


def fit_metrics(config: Config, evaluator: str, count: int | None) -> None:
    """Leave out top-k of more classes than there are, which mmpretrain would refuse after an epoch, and say so.

    Raises:
        ValueError: for a metric told of another number of classes.
    """
    metrics = config.get(evaluator) or []
    for metric in [metrics] if isinstance(metrics, dict) else metrics:
        if not count or not isinstance(metric, dict):
            continue
        told = metric.get('num_classes')
        if told is not None and told != count:
            raise ValueError(f'{evaluator}: {metric["type"]} has num_classes={told}, the head has {count}')
        top = metric.get('topk')
        if isinstance(top, int | list | tuple):
            top = [top] if isinstance(top, int) else list(top)
            fitting = [k for k in top if k <= count]
            if len(fitting) < len(top):
                metric['topk'] = tuple(fitting or [1]) if isinstance(metric['topk'], list | tuple) else count
                say(f'{evaluator}: {metric["type"]} of the best {max(top)} needs as many classes, there are {count}: '
                    f'topk={metric["topk"]}')  # fmt: skip


def check_loaders(loaders: dict[str, object], config: Config) -> None:
    """Check what has been built: images in every loader, labels that the head has, the same classes everywhere.

    Args:
        loaders: data loaders by name, those that a run has.

    Raises:
        ValueError: naming the loader and what is wrong with its data.
    """
    count, reference, source = num_classes(config), None, ''
    for name, loader in loaders.items():
        dataset = loader.dataset
        if not len(dataset):
            raise ValueError(f'{name}: its data set is empty')
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        check_same(names, reference, name, source)
        if names and reference is None:
            reference, source = names, name
        for part in innermost(dataset):
            _check_labels(part, name, count)


def _check_labels(dataset, name: str, count: int | None) -> None:
    if not count or isinstance(dataset, MmpretrainDataset) or not hasattr(dataset, 'get_cat_ids'):
        return  # the labels of mmpretrain's come from files that check_data has read
    for index in range(len(dataset)):
        try:
            labels = dataset.get_cat_ids(index)
        except (KeyError, NotImplementedError):
            return  # images without labels
        for label in labels:
            if not 0 <= label < count:
                image = dataset.get_data_info(index).get('img_path', f'image {index}')
                raise ValueError(
                    f'{name}: {image} has label {label}, and the head has {count} classes, 0 .. {count - 1}'
                )


def leave_out_last_of_one(loader, model: nn.Module) -> None:
    """Drop a last batch of one image, of which batch normalization has no statistics, and say so.

    Raises:
        ValueError: if that image is all there is.
    """
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler or isinstance(batches.sampler, InfiniteSampler):
        return
    norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    images = len(batches.sampler)
    if not norms or batches.drop_last or batches.batch_size == 1 or images % batches.batch_size != 1:
        return
    if images == 1:
        raise ValueError('train_dataloader: one image in all, and batch normalization needs two')
    batches.drop_last = True
    say(
        f'train_dataloader: of {images} images in batches of {batches.batch_size} the last would be alone, and batch '
        'normalization needs two: it is left out (another one each epoch)'
    )
