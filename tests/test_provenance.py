"""What a figure says of the machine that it was measured on."""

import os
import platform
from pathlib import Path

import mmcv
import mmpretrain
import PIL
import pytest

from mobileone_ext import provenance
from mobileone_ext.provenance import machine


def test_packages_are_named_by_import_and_told_by_distribution():
    head, packages = machine('mmcv', 'mmpretrain', 'PIL').split('; ')
    names, versions = zip(*(package.split() for package in packages.split(', ')))
    assert head.endswith('cores')
    assert versions == (mmcv.__version__, mmpretrain.__version__, PIL.__version__)
    assert names in (('mmcv-lite', 'mmpretrain', 'pillow'), ('onedl-mmcv', 'onedl-mmpretrain', 'pillow'))


@pytest.mark.parametrize(
    'cpuinfo, expected',
    [
        ('model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni\n', 'AMD EPYC (AVX2, AVX-512, VNNI), '),
        (
            'model name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2',
            'AMD EPYC (AVX2), ',
        ),
        ('model name\t: Some: name\nflags\t\t: fpu avx2 avx_vnni\n', 'Some: name (AVX2, VNNI), '),
        ('model name\t: Old\nflags\t\t: fpu avx\n', 'Old, '),
        ('processor\t: 0\nFeatures\t: fp asimd\n', f'{platform.processor() or platform.machine()}, '),
    ],
)
def test_a_processor_is_told_by_its_vector_instructions(cpuinfo, expected, tmp_path, monkeypatch):
    (tmp_path / 'cpuinfo').write_text(cpuinfo)
    monkeypatch.setattr(provenance, 'Path', lambda path: tmp_path / Path(path).name)
    assert provenance.processor() == f'{expected}{os.cpu_count()} cores'
