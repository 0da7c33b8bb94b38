"""Checkpoints of every layout: read, checked, converted, un-fused. load.py needs torch and safetensors alone."""
