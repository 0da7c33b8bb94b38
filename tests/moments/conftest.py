"""Both ways to the sums behind moments: compiled kernels and torch's operators."""

import pytest
import torch

from mobileone_ext.moments import kernels


@pytest.fixture(params=['kernels', 'operators'])
def either(request, monkeypatch):
    """By the compiled kernels, where there are some, and by torch's operators."""
    if request.param == 'operators':
        monkeypatch.setattr(kernels, 'usable', lambda *maps, **options: False)
    elif not kernels.usable(torch.ones(1, 1, 1, 1)):
        pytest.skip('no compiler')
