"""Data sets: photos with image-level labels, ground truth apart from them, and their files."""
