"""Compile a plan, start its kernel, and watch over it."""
