"""What a run reads, and its record of that."""
