"""Pipeline of a run: preparation, training of the stages, comparison."""
