"""Benchmarks: latency (infer.py), training steps (train.py), the input pipeline (pipeline.py),
the training loop (loop.py) and the cost of ImageNet, calculated (imagenet.py)."""
