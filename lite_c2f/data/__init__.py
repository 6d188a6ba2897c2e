"""Preference pairs and prompts: from files to tokens."""
