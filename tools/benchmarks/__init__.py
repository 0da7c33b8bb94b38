"""Benchmarks: latency (infer.py), training steps (train.py), the input pipeline (pipeline.py),
and the cost of ImageNet, calculated (imagenet.py)."""
