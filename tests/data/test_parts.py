"""Classes or the parts of a split: by what folders hold, whatever they are called."""

from pathlib import Path

import pytest

from mobileone_ext.data.parts import alike, branches, find_parts

ROOT = Path('photos')


def photos(**folders) -> dict[str, list[str]]:
    """``name='a b'``: three photos in each of these folders below ``name``; ``''`` for three beside them."""
    return {
        name: [f'{inner}/{i}.jpg' if inner else f'{i}.jpg' for inner in (inners.split() or ['']) for i in range(3)]
        for name, inners in folders.items()
    }


@pytest.mark.parametrize(
    'folders, parts',
    [
        (dict(train='a b', val='a b'), dict(train='train', val='val')),
        (dict(Training='a b', TEST='a b'), dict(train='Training', test='TEST')),
        (dict(train='a b', exam='a b'), dict(train='train', val='exam')),
        (dict(learn='a b', test='a b'), dict(train='learn', test='test')),
        (dict(learn='a b c d', test='a', valid='c d'), dict(train='learn', val='valid', test='test')),
        (dict(cars_train='a b', cars_test='b'), dict(train='cars_train', test='cars_test')),
        (dict(TrainSet='a b', ValSet='a b', TestSet='a b'), dict(train='TrainSet', val='ValSet', test='TestSet')),
        (dict(seg_train='seg_train/a seg_train/b', seg_test='seg_test/a seg_test/b', seg_pred='seg_pred'),
         dict(train='seg_train/seg_train', test='seg_test/seg_test')),
        (dict(train='a b', train_more='a b', val='a b'), dict(train='train', val='val')),
        (dict(train='a b', my_val='a b', my_test='a b'), dict(train='train', val='my_val', test='my_test')),
        (dict(train='a b', val='a b', extra='a b'), dict(train='train', val='val')),  # who it is for is not known
        (dict(train='caf\u00e9 b', exam='cafe\u0301 b'), dict(train='train', val='exam')),
        (dict(train='a b', val=''), dict(train='train')),
        (dict(train='a b', val='c d'), dict(train='train', val='val')),  # refused where classes are compared
        (dict(train='a b'), dict(train='train')),
        (dict(train='', bus='', car=''), {}),  # a class may have such a name
        (dict(test='left right', cat='', dog=''), {}),
        (dict(cat='', dog='', bird=''), {}),
        (dict(cat='persian siamese', dog='poodle corgi'), {}),
        (dict(cat='images', dog='images'), {}),
        (dict(cat='left right', dog='left right', ant='', bee='', fly=''), {}),
        (dict(docs='', train='a b'), None),
        (dict(train='ice freight', plane='', car=''), None),
    ],
)  # fmt: skip
def test_what_folders_are(folders, parts):
    inside = photos(**folders)
    if parts is None:
        with pytest.raises(ValueError, match=f'name {ROOT}/train if these are the classes, or move all classes'):
            find_parts(ROOT, inside)
    else:
        assert find_parts(ROOT, inside) == {role: ROOT / path for role, path in parts.items()}


@pytest.mark.parametrize(
    'folders, first, second',
    [
        (dict(exam='a b', learn='a b c'), 'learn', 'exam'),
        (dict(one='a b', two='a b', three='a b'), 'one', 'two'),
        (dict(обучение='a b', проверка='a b'), 'обучение', 'проверка'),
        (dict(val='a b', one='a b', two='a b'), 'val', 'one'),
        (dict(train='a b', one='a b', two='a b c'), 'train', 'two'),
        (dict(train1='a b', train2='a b'), 'train1', 'train2'),
        (dict(train='a b', val='a b', dev='a b'), 'train', 'val'),
        (dict(cat='2021 2022', dog='2022 2023'), 'cat', 'dog'),
        (dict(learn='a b', exam='a b', more=''), 'learn', 'exam'),
        (dict(exam='a', learn='a b c d e f'), 'learn', 'exam'),
    ],
)
def test_what_is_not_clear_is_refused_with_both_remedies(folders, first, second):
    with pytest.raises(ValueError) as raised:
        find_parts(ROOT, photos(**folders))
    text = str(raised.value)
    assert f'as in photos/{first} --val photos/{second}; if they are classes, move them into photos/train' in text
    assert find_parts(ROOT, dict(train=[f'{name}/{file}' for name in folders for file in photos(**folders)[name]])) == {
        'train': ROOT / 'train'
    }


@pytest.mark.parametrize(
    'folders, word',
    [
        (dict(train='', val=''), "'train', 'val' hold photos and no class folders; expected is photos/train/CLASS"),
        (dict(train='', val='a b'), 'hold photos and no class folders'),
        (dict(cat='train val', dog='train val'), 'a split within the classes; expected is one around them'),
    ],
)
def test_splits_without_classes_and_within_them(folders, word):
    with pytest.raises(ValueError, match=word):
        find_parts(ROOT, photos(**folders))


@pytest.mark.parametrize(
    'files, expected',
    [
        (['1.jpg', '2.jpg'], ('', set())),
        (['a/1.jpg', 'a/2.jpg'], ('', {'a'})),
        (['a/1.jpg', 'b/2.jpg'], ('', {'a', 'b'})),
        (['x/y/a/1.jpg', 'x/y/b/c/2.jpg'], ('x/y', {'a', 'b'})),
        (['x/y/1.jpg'], ('x', {'y'})),
        (['ab/1.jpg', 'ac/2.jpg'], ('', {'ab', 'ac'})),
        (['a/1.jpg', 'a/2.jpg', 'b/3.jpg', '4.jpg'], ('', {'a', 'b'})),
        (['1.jpg', '2.jpg', '3.jpg', 'more/4.jpg', 'less/5.jpg'], ('', set())),
    ],
)
def test_where_photos_part(files, expected):
    assert branches(files) == expected


def test_many_folders_take_no_longer_than_they_are_many():
    """Not their square: half a minute would be ten."""
    import time

    start = time.process_time()
    assert alike({f'class {i}': [f'{i} left', f'{i} right'] for i in range(100_000)}) == []
    assert time.process_time() - start < 10
