"""Operators and the source code they become."""
