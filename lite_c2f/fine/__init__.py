"""Stage 3: the Knowledge Residue Merger, which makes the Fine Actor."""
