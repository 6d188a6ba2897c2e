"""Settings of a run: what they are, and how they are read."""
