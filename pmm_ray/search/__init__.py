"""Searching for settings: the space, who proposes, what is tried, the record, and what it says."""
