"""Runs: the data and models they read, and their record on disk."""
