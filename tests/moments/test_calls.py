"""How often a step by moments calls torch's operators."""

import pytest
from benchmarks.host import NETWORKS, count_calls, make_step

from mobileone_ext.moments import kernels


@pytest.mark.skipif(kernels.library() is None, reason='no C++ compiler')
def test_moments_call_no_more_than_branches():
    """643 of them accumulate the gradients of S0's parameters."""
    assert count_calls(make_step('s0', **NETWORKS['moments'])) <= 2100
