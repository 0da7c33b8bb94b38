"""Benchmarks: latency (infer.py), training steps (train.py), the input pipeline (pipeline.py)."""
