"""Contracts that every other part of ark_dist shares; imports nothing of ours."""
