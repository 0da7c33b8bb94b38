"""What a step by moments asks of the host: calls of torch's operators, as a profiler counts them at the top."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mobileone_ext.backbone import MobileOne
from mobileone_ext.moments import kernels


def calls(train_impl):
    torch.manual_seed(0)
    net = MobileOne('s0', train_impl=train_impl).train().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    for step in range(2):  # the first decides and builds
        net.zero_grad(set_to_none=True)
        with profile(activities=[ProfilerActivity.CPU]) if step else torch.enable_grad() as profiler:
            net(images)[-1].square().mean().backward()
    events = [event for event in profiler.events() if event.name.startswith('aten::')]
    return sum(event.cpu_parent is None or not event.cpu_parent.name.startswith('aten::') for event in events)


@pytest.mark.skipif(kernels.library() is None, reason='no C++ compiler')
def test_moments_call_no_more_than_branches():
    """643 of them accumulate the gradients of S0's parameters."""
    assert calls('moments') <= 2100 < calls('branches')
