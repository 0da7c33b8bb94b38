"""A data set resized once: the same folders, names and crops, whole files, a run that goes on, one line a mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
from conftest import ROOT, only_line
from mmcv.transforms import CenterCrop
from mmpretrain.datasets.transforms import RandomResizedCrop, ResizeEdge
from PIL import Image

from mobileone_ext.data import resize
from mobileone_ext.data.dataset import CustomDataset
from mobileone_ext.data.transforms import LoadImageFromFile

EDGE = 48
RED, GREEN = (200, 30, 30), (30, 200, 30)


def photo(path, size=(128, 96), **options):
    """Upper half red, lower half green; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', size, GREEN)
    image.paste(RED, (0, 0, size[0], size[1] // 2))
    image.save(path, **options)
    return path


def tree(folder):
    """Contents of the files below ``folder``, but the mark."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name not in (resize.MARK, resize.FILES)
    }


@pytest.fixture
def source(tmp_path):
    """Two splits of two classes, and annotation files."""
    root = tmp_path / 'source'
    for split in ('train', 'val'):
        for number, name in enumerate(('cat', 'dog')):
            photo(root / split / name / f'{number}.jpg')
    for name in ('meta/train.txt', 'noisy_imagenette.csv'):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text('cat/0.jpg 0\ndog/1.jpg 1\n')
    return root


def large_photos():
    """Photos of 427 px and more in the short edge that come with scikit-learn and matplotlib."""
    folders = [Path(sklearn.__file__).parent / 'datasets/images', Path(matplotlib.__file__).parent / 'mpl-data']
    return [path for folder in folders for path in sorted(folder.rglob('*.jpg'))]


def test_folders_names_and_annotations_stay(source, tmp_path):
    (source / 'train/ant').mkdir()  # a class without photos is a class: labels follow the order of the folders
    photo(source / '.cache/hidden.jpg')
    (source / 'notes.pdf').write_bytes(b'')
    target = tmp_path / 'target'
    report = resize.resize_dataset(source, target, EDGE)
    assert set(tree(target)) == set(tree(source)) - {'.cache/hidden.jpg', 'notes.pdf'}
    for name in ('meta/train.txt', 'noisy_imagenette.csv'):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert report.counts == dict(resized=4, annotations=2) and report.left_out == "left out: 1 .pdf, 1 hidden '.cache'"
    assert report.before == 4 * (source / 'val/cat/0.jpg').stat().st_size
    assert report.after == 4 * (target / 'val/cat/0.jpg').stat().st_size
    assert {Image.open(path).size for path in target.rglob('*.jpg')} == {(64, 48)}
    dataset = CustomDataset(data_root=str(target), data_prefix='train', pipeline=[])
    assert dataset.CLASSES == ('ant', 'cat', 'dog') and list(dataset.get_gt_labels()) == [1, 2]


def test_several_processes_write_the_same(source, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1}, raising=False)  # else torch warns of two workers
    one = resize.resize_dataset(source, tmp_path / 'one', EDGE, processes=1)
    two = resize.resize_dataset(source, tmp_path / 'two', EDGE, processes=2)
    assert one == two and tree(tmp_path / 'one') == tree(tmp_path / 'two')


@pytest.mark.parametrize('suffix, kind', [('.jpeg', 'JPEG'), ('.png', 'PNG'), ('.webp', 'WEBP'), ('.TIF', 'TIFF')])
def test_the_format_is_that_of_the_name(tmp_path, suffix, kind):
    # As one of ImageNet: a PNG by the name of a JPEG.
    photo(tmp_path / 'source' / f'a{suffix}', format='PNG')
    resize.resize_dataset(tmp_path / 'source', tmp_path / 'target', EDGE)
    with Image.open(tmp_path / 'target' / f'a{suffix}') as image:
        assert (image.format, image.size) == (kind, (64, 48))
        pixels = np.asarray(image.convert('RGB'), float)
    assert np.abs(pixels[:20] - RED).max() < 12 and np.abs(pixels[-20:] - GREEN).max() < 12


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_are_turned_upright(tmp_path, orientation):
    tags = Image.Exif()
    tags[274] = orientation
    path = photo(tmp_path / 'source/a.jpg', exif=tags, quality=100)
    resize.resize_dataset(path.parent, tmp_path / 'target', EDGE)
    actual = Image.open(tmp_path / 'target/a.jpg')
    assert actual.getexif().get(274, 1) == 1
    # Pillow's own turning, of a small copy of the stored pixels.
    small = Image.open(path).resize((64, 48), Image.Resampling.LANCZOS)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    expected = small if turn is None else small.transpose(Image.Transpose(turn))
    assert actual.size == expected.size
    assert np.abs(np.asarray(actual, float) - np.asarray(expected, float)).mean() < 2


def test_what_is_small_or_not_rewritten_is_the_same_file(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    small, moving = photo(source / 'small.jpg', (60, 48)), photo(source / 'moving.gif')
    (source / 'link.jpg').symlink_to(small)
    report = resize.resize_dataset(source, target, EDGE)
    assert report.counts == {'small': 2, 'other format': 1, 'annotations': 0}
    for name, original in {'small.jpg': small, 'link.jpg': small, 'moving.gif': moving}.items():
        assert (target / name).samefile(original) and not (target / name).is_symlink()


def test_without_hard_links_it_is_copied(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    path = photo(tmp_path / 'source/small.jpg', (60, 48))
    monkeypatch.setattr(os, 'link', refuse)
    for done in (0, 1):
        report = resize.resize_dataset(path.parent, tmp_path / 'target', EDGE)
        assert report.counts['done'] == done
    copy = tmp_path / 'target/small.jpg'
    assert copy.read_bytes() == path.read_bytes() and not copy.samefile(path)


def test_gray_stays_gray_and_cmyk_becomes_rgb(tmp_path):
    for mode in ('L', 'CMYK'):
        Image.new(mode, (128, 96), 90 if mode == 'L' else (10, 20, 30, 40)).save(photo(tmp_path / f'source/{mode}.jpg'))
    resize.resize_dataset(tmp_path / 'source', tmp_path / 'target', EDGE)
    assert [Image.open(tmp_path / f'target/{mode}.jpg').mode for mode in ('L', 'CMYK')] == ['L', 'RGB']


def test_unreadable_photos_are_named_and_tried_again(run_tool, source, tmp_path):
    whole = (source / 'train/cat/0.jpg').read_bytes()
    small = photo(source / 'val/dog/small.jpg', (20, 20))
    contents = {'train/cat/cut.jpg': whole[: len(whole) // 2], 'train/dog/empty.png': b'', 'val/dog/text.jpg': b'no'}
    contents['val/dog/small.jpg'] = small.read_bytes()[:-200]
    for name, content in contents.items():
        (source / name).write_bytes(content)
    command = 'resize_dataset', source, tmp_path / 'target', '--short-edge', EDGE, '--processes', 1
    code, printed = run_tool(*command)
    assert code == 0 and '4 not readable, left out' in printed and '4 resized' in printed
    for name in contents:
        assert f'skipped {name}: ' in printed and not (tmp_path / 'target' / name).exists()
    (source / 'train/cat/cut.jpg').write_bytes(whole)
    code, printed = run_tool(*command)
    assert (
        code == 0 and '3 not readable' in printed and '1 resized' in printed and '4 done by an earlier run' in printed
    )


@pytest.mark.parametrize('seconds', [-1e6, -1e-3, 10])
def test_a_changed_photo_is_made_anew(source, tmp_path, seconds):
    resize.resize_dataset(source, tmp_path / 'target', EDGE)
    changed = photo(source / 'val/cat/0.jpg', (96, 96))
    date = (tmp_path / 'target/val/cat/0.jpg').stat().st_mtime + seconds
    os.utime(changed, (date, date))
    for made in (1, 0):
        report = resize.resize_dataset(source, tmp_path / 'target', EDGE)
        assert report.counts['resized'] == made and report.counts['done'] == 4 - made
        assert Image.open(tmp_path / 'target/val/cat/0.jpg').size == (48, 48)


@pytest.mark.parametrize('seconds', [-1e6, 1e6])
def test_a_changed_annotation_file_is_copied_anew(source, tmp_path, seconds):
    resize.resize_dataset(source, tmp_path / 'target', EDGE)
    changed = source / 'meta/train.txt'
    changed.write_text('cat/0.jpg 1\n')
    date = changed.stat().st_mtime + seconds
    os.utime(changed, (date, date))
    resize.resize_dataset(source, tmp_path / 'target', EDGE)
    assert (tmp_path / 'target/meta/train.txt').read_text() == 'cat/0.jpg 1\n'


def test_what_is_gone_is_said_and_pruned(run_tool, source, tmp_path):
    """A photo, a class, an annotation file; a class that was renamed; a photo that is damaged by now."""
    target = tmp_path / 'target'
    for number in (2, 3):
        photo(source / f'train/cat/{number}.jpg')
    photo(source / 'train/\udcff/odd.jpg')
    resize.resize_dataset(source, target, EDGE)
    (target / 'train/dog/mine.txt').write_text('not of this tool')
    (target / 'mine').mkdir()
    (source / 'train/cat/2.jpg').unlink()
    (source / 'train/cat/3.jpg').write_bytes(b'no photo')
    (source / 'meta/train.txt').unlink()
    (source / 'meta').rmdir()
    (source / 'train/\udcff/odd.jpg').unlink()
    (source / 'train/\udcff').rmdir()
    (source / 'val/cat').rename(source / 'val/tomcat')
    (source / 'train/dog/1.jpg').unlink()
    (source / 'train/dog').rmdir()
    before = tree(target)
    command = 'resize_dataset', source, target, '--short-edge', EDGE, '--processes', 1
    code, printed = run_tool(*command)
    gone = {'train/cat/2.jpg', 'train/cat/3.jpg', 'meta/', 'meta/train.txt', 'train/dog/1.jpg', 'train/dog/'}
    gone |= {'train/\udcff/', 'train/\udcff/odd.jpg', 'val/cat/', 'val/cat/0.jpg'}
    assert code == 0 and '10 files and folders not in the source any more' in printed and '--prune' in printed
    assert set(tree(target)) == {*before, 'val/tomcat/0.jpg'}
    code, printed = run_tool(*command, '--prune')
    assert code == 0 and '9 files and folders removed' in printed  # train/dog holds a file of somebody else
    assert (target / 'train/dog/mine.txt').exists() and (target / 'mine').exists()
    assert set(tree(target)) == {*before, 'val/tomcat/0.jpg'} - gone
    assert not (target / 'meta').exists() and not (target / 'val/cat').exists()
    (target / 'val/cat').mkdir()
    photo(target / 'val/cat/0.jpg')
    code, printed = run_tool(*command, '--prune')
    assert 'removed' not in printed and (target / 'val/cat/0.jpg').exists()  # somebody else's by now


def test_what_a_killed_run_was_writing_down_is_done_again(source, tmp_path):
    target = tmp_path / 'target'
    resize.resize_dataset(source, target, EDGE)
    lines = (target / resize.FILES).read_text()
    (target / resize.FILES).write_text(lines[:-5])
    for made in (1, 0):
        assert resize.resize_dataset(source, target, EDGE).counts['resized'] == made


def test_a_killed_run_goes_on_and_leaves_nothing_half_written(source, tmp_path):
    """Killed with the second photo written to its temporary name, half of it."""
    target = tmp_path / 'target'
    program = f"""
import os, pathlib, signal
from mobileone_ext.data import resize
write, written = pathlib.Path.write_bytes, []
def dying(path, data):
    written.append(path)
    write(path, data[: len(data) // 2] if len(written) == 2 else data)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = dying
resize.resize_dataset({str(source)!r}, {str(target)!r}, {EDGE})
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    killed = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert len([name for name in tree(target) if name.endswith('.jpg')]) == 1
    assert len([name for name in tree(target) if name.endswith('.part')]) == 1
    report = resize.resize_dataset(source, target, EDGE)
    assert report.counts['done'] == 1 and report.counts['resized'] == 3
    resize.resize_dataset(source, tmp_path / 'other', EDGE)
    assert tree(target) == tree(tmp_path / 'other')


def test_a_killed_process_is_one_line(run_tool, source, tmp_path, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(resize, 'resize_file', die)
    code, printed = run_tool('resize_dataset', source, tmp_path / 'target', '--processes', 2)
    assert code == 1 and '--processes N takes fewer' in only_line(printed)


def test_an_interrupted_run_says_how_to_go_on(run_tool, source, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(resize, 'resize_file', interrupt)
    code, printed = run_tool('resize_dataset', source, tmp_path / 'target', '--processes', 1)
    assert code == 130 and printed.endswith('interrupted; what is written is whole, and the same command goes on\n')


def test_links_are_followed_without_circles(source, tmp_path):
    photo(tmp_path / 'elsewhere/2.jpg')
    (source / 'train/cat/more').symlink_to(tmp_path / 'elsewhere')
    (source / 'train/cat/again').symlink_to(source / 'train')
    resize.resize_dataset(source, tmp_path / 'target', EDGE)
    assert 'train/cat/more/2.jpg' in tree(tmp_path / 'target') and len(tree(tmp_path / 'target')) == 7


MISTAKES = {
    'no source': (lambda t: (t / 'absent', t / 'out'), [], 'No such file or directory: '),
    'a file for a source': (lambda t: (t / 'source/meta/train.txt', t / 'out'), [], 'Not a directory: '),
    'no photos': (lambda t: (t / 'source/meta', t / 'out'), [], 'meta: no photos in this folder'),
    'the same folder': (lambda t: (t / 'source', t / 'source'), [], 'lies in what is read'),
    'inside': (lambda t: (t / 'source', t / 'source/small'), [], 'lies in what is read'),
    'inside by a link': (lambda t: (t / 'source', t / 'link/small'), [], 'lies in what is read'),
    'around': (lambda t: (t / 'source', t), [], 'is not empty, and no run of this tool wrote it'),
    'a file for a target': (lambda t: (t / 'source', t / 'file'), [], 'Not a directory: '),
    'a broken mark': (lambda t: (t / 'source', t / 'odd'), [], 'odd: was written with [, not '),
    'too small': (lambda t: (t / 'source', t / 'out'), ['--short-edge', 31], "'31': a whole number from 32 to 4096"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(run_tool, source, tmp_path, mistake):
    (tmp_path / 'link').symlink_to(source)
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd' / resize.MARK).write_text('[')
    folders, options, message = MISTAKES[mistake]
    before = tree(tmp_path)
    code, printed = run_tool('resize_dataset', *folders(tmp_path), *options)
    assert code == 1 and message in only_line(printed)
    assert tree(tmp_path) == before and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('change', ['short_edge', 'quality', 'source'])
def test_another_run_with_other_settings_is_refused(source, tmp_path, change):
    target = tmp_path / 'target'
    resize.resize_dataset(source, target, EDGE)
    settings = dict(source=source, short_edge=EDGE, quality=resize.QUALITY)
    settings[change] = source / 'val' if change == 'source' else settings[change] - 1
    with pytest.raises(ValueError, match=f'was written with .*"{change}": '):
        resize.resize_dataset(settings['source'], target, settings['short_edge'], settings['quality'])
    assert json.loads((target / resize.MARK).read_text())['short_edge'] == EDGE


def test_a_link_to_what_is_written_is_refused(source, tmp_path):
    resize.resize_dataset(source, tmp_path / 'target', EDGE)
    (source / 'train/cat/small').symlink_to(tmp_path / 'target/train')
    with pytest.raises(ValueError, match='train/cat/small/cat: leads to what is written'):
        resize.resize_dataset(source, tmp_path / 'target', EDGE)


def test_a_full_disk_is_one_line(run_tool, source, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    code, printed = run_tool('resize_dataset', source, tmp_path / 'target', '--short-edge', EDGE, '--processes', 1)
    assert code == 1 and 'cat/0.jpg: cannot be written: No space left' in only_line(printed)
    assert not [name for name in tree(tmp_path / 'target') if name.endswith(('.part', '.jpg'))]


def test_no_readable_photo_is_an_error(run_tool, tmp_path):
    (tmp_path / 'source').mkdir()
    (tmp_path / 'source/a.jpg').write_bytes(b'no')
    code, printed = run_tool('resize_dataset', tmp_path / 'source', tmp_path / 'target', '--processes', 1)
    assert code == 1 and 'none of its 1 photos is readable; the first is a.jpg: not an image' in only_line(printed)


def evaluated(path):
    """The crop that a photo is evaluated by, by mmpretrain's transforms and Pillow's resizing."""
    results = LoadImageFromFile()(dict(img_path=str(path)))
    results = ResizeEdge(scale=256, edge='short', backend='pillow')(results)
    return CenterCrop(crop_size=224)(results)['img'].astype(float)


def test_crops_for_evaluation_stay_within_two_gray_levels(tmp_path):
    photos = large_photos()
    assert len(photos) == 3
    for path in photos:
        target = tmp_path / path.name
        assert resize.resize_file(path, target, 292, resize.QUALITY).kind == 'resized'
        assert min(Image.open(target).size) == 292
    differences = [np.abs(evaluated(path) - evaluated(tmp_path / path.name)).mean() for path in photos]
    assert np.mean(differences) < 2 and max(differences) < 3


@pytest.mark.parametrize('short_edge', [256, 288, 292, 320])
def test_evaluation_resizes_to_the_same_size(short_edge):
    for height, width in np.random.default_rng(0).integers(short_edge + 1, 3000, (2000, 2)).tolist():
        new = resize.fitted((height, width), short_edge)
        assert min(new) == short_edge
        assert max(abs(new[0] * width / height - new[1]), abs(new[1] * height / width - new[0])) < 1.5 * max(
            1, height / width, width / height
        )
        sizes = [tuple(int(256 * side / min(size)) for side in size) for size in ((height, width), new)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize('size', [(375, 500), (500, 333), (1200, 1600), (600, 600)])
def test_random_crops_keep_their_distribution_of_scales(size):
    """The same draws give the same part of a photo, but where rounding decides whether a draw is taken."""
    crop = RandomResizedCrop(scale=224)
    parts = np.empty((300, 2, 2))  # draws x (original, resized) x (height, width) of the crop, relative to the photo's
    for seed in range(len(parts)):
        for which, (height, width) in enumerate((size, resize.fitted(size, 292))):
            np.random.seed(seed)
            _, _, h, w = crop.rand_crop_params(np.empty((height, width, 0)))
            parts[seed, which] = h / height, w / width
    close = np.abs(parts[:, 0] - parts[:, 1]).max(1) < 2 / 292
    assert close.mean() > 0.98
    quantiles = np.quantile(parts.prod(2), np.linspace(0, 1, 11), axis=0)
    np.testing.assert_allclose(quantiles[:, 0], quantiles[:, 1], atol=0.015)
    assert quantiles[0, 1] < 0.1 and quantiles[-1, 1] > 0.8
