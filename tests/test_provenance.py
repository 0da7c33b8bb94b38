"""What a figure says of the machine that it was measured on."""

import mmcv
import mmpretrain
import PIL

from mobileone_ext.provenance import machine


def test_packages_are_named_by_import_and_told_by_distribution():
    head, packages = machine('mmcv', 'mmpretrain', 'PIL').split('; ')
    names, versions = zip(*(package.split() for package in packages.split(', ')))
    assert head.endswith('cores')
    assert versions == (mmcv.__version__, mmpretrain.__version__, PIL.__version__)
    assert names in (('mmcv-lite', 'mmpretrain', 'pillow'), ('onedl-mmcv', 'onedl-mmpretrain', 'pillow'))
