"""Adapted language models: backbones, encoders, heads, experience pools and training."""
