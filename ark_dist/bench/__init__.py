"""Measure what a model's own work costs, against a floor and against PyTorch."""
