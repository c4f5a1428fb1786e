"""Checkpoints of several files, read and written in slices by several ranks."""
