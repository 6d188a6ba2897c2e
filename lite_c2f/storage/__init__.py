"""Files that appear whole or not at all: locks, results, checkpoints."""
