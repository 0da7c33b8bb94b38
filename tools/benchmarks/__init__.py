"""Benchmarks: latency (infer.py), training steps (train.py), the input pipeline (pipeline.py),
the training loop (loop.py) and the cost of ImageNet, calculated (imagenet.py)."""

# What --clock names, as functions of the module time. Processor time of one thread is what a free core would take.
CLOCKS = dict(wall='perf_counter', cpu='process_time')
