"""Benchmarks: latency (infer.py), training steps (train.py)."""
