"""Training all branches of a block as one convolution: statistics.py, for depthwise kernels depthwise.py."""
