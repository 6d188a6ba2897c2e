"""Conversations and votes of the app, on disk."""
