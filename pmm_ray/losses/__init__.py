"""Losses on tensors. They return per-pixel values; the reduction happens once, at the end."""
