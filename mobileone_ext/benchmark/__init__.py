"""Benchmarks: latency (infer.py)."""
