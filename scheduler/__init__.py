"""Passes that turn a graph into a plan."""
