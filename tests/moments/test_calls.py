"""How often a step by moments calls torch's operators, and that it never waits for a value."""

import pytest
from benchmarks.host import NETWORKS, by_torch, count_calls, make_step, narrow
from torch.profiler import ProfilerActivity, profile

from mobileone_ext.moments import kernels


@pytest.mark.skipif(kernels.library() is None, reason='no C++ compiler')
def test_moments_call_no_more_than_branches():
    """643 of them accumulate the gradients of S0's parameters."""
    assert count_calls(make_step('s0', **NETWORKS['moments'])) <= 2000


@pytest.mark.parametrize('way', [lambda step: step, by_torch], ids=['compiled', 'by torch'])
def test_no_value_goes_to_the_host(way):
    step = way(make_step(narrow('s1'), **NETWORKS['moments']))
    step()  # makes the tables that are kept
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    names = {event.name for event in profiler.events()}
    assert 'aten::conv2d' in names and not names & {'aten::_local_scalar_dense', 'aten::lift_fresh'}
