"""Stage 1: the reward model."""
