"""Weakly supervised segmentation on Ray: from image-level labels to pseudo-masks and a trained model."""

__version__ = "0.7.0"
