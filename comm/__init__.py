"""Communicators between ranks."""
