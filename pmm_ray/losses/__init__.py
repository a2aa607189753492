"""Losses on tensors. They return per-pixel or per-image values; the reduction happens once, at the end."""
