"""Benchmarks: training steps (train.py) and latency (infer.py)."""
