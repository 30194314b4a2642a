"""Viewport prediction: one file per algorithm, named as it is registered."""
