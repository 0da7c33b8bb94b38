"""Photos without torch have the pixels that the pipeline of mmpretrain gives them."""

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

import mobileone_ext.data.transforms  # noqa: F401  (registers LoadImageFromFile)
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.data.reading import Photos, in_batches
from mobileone_ext.metadata import Metadata

CROP = Metadata(size=[32, 32], fit='crop', crop=0.8, channels='RGB', mean=[1, 2, 3], std=[4, 5, 6])


@pytest.fixture
def photos(tmp_path):
    """Wide, tall and gray ones, of even and odd sides; larger and smaller than the network's."""
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(61, 45), (44, 90), (20, 17), (33, 32)]):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.save(tmp_path / f'{number}.jpg')
        image.convert('L').save(tmp_path / f'{number}.png')
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(interpolation='bicubic', crop=0.875),
        dict(crop=1.0, channels='BGR'),
        dict(backend='cv2'),
        dict(backend='cv2', interpolation='lanczos', size=[32, 24]),
        dict(fit='squash', size=[24, 40], interpolation='lanczos'),
        dict(fit='squash', backend='cv2', interpolation='area'),
        dict(fit='pad', size=[24, 41]),
        dict(fit='pad', backend='cv2', interpolation='area', channels='BGR'),
        dict(fit='pad', channels='gray', mean=[1], std=[2]),
        dict(channels='gray', mean=[1], std=[2]),
        dict(channels='gray', mean=[1], std=[2], backend='cv2', fit='squash'),
        dict(fit=None, crop=None),
    ],
)
def test_pixels_are_the_pipelines(changes, photos):
    metadata = Metadata.read({**CROP.values(), **changes})
    init_default_scope('mmpretrain')
    preprocessor = dict(mean=metadata.mean, std=metadata.std, to_rgb=metadata.channels == 'RGB')
    pipeline = Config(
        dict(
            model=dict(data_preprocessor=preprocessor),
            test_dataloader=dict(dataset=dict(pipeline=metadata.pipeline())),
        )
    )
    expected, found = Preprocessing(pipeline), Photos(metadata)
    skipped: list[str] = []
    pairs = list(zip(expected.read(photos, skipped), found.read(photos, skipped), strict=True))
    assert len(pairs) == len(photos) and not skipped
    for (path, one), (same_path, other) in pairs:
        assert path == same_path and other.dtype == np.float32
        np.testing.assert_array_equal(one.numpy(), other)
        np.testing.assert_array_equal(expected.normalize(one).numpy(), found.normalize(other))


def test_what_is_no_photo_is_named_and_left_out(photos, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(photos[0].read_bytes()[:200])
    skipped: list[str] = []
    read = list(Photos(CROP).read([tmp_path / 'broken.jpg', photos[0]], skipped))
    assert [path for path, _ in read] == [photos[0]]
    assert len(skipped) == 1 and 'broken.jpg: not a readable image' in skipped[0]
    with pytest.raises(ValueError, match='none of the files is a readable image'):
        list(Photos(CROP).read([tmp_path / 'broken.jpg'], []))


def test_a_resizing_that_nobody_knows_is_named():
    with pytest.raises(ValueError, match="resizing 'magic' by 'pillow' is not known"):
        Photos(Metadata.read({**CROP.values(), 'interpolation': 'magic'}))


def test_batches_end_where_the_size_changes():
    images = [(index, np.zeros((3, side, 4))) for index, side in enumerate([4, 4, 4, 5, 4])]
    assert [(paths, batch.shape) for paths, batch in in_batches(images, 2)] == [
        ([0, 1], (2, 3, 4, 4)),
        ([2], (1, 3, 4, 4)),
        ([3], (1, 3, 5, 4)),
        ([4], (1, 3, 4, 4)),
    ]
