"""From class activation maps to pseudo-masks: numpy science that knows nothing of files, Ray or settings."""
