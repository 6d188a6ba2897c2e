"""Storage of a run: atomic files, the lock, cached results, checkpoints."""
