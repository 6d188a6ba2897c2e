"""One command trains: reward model, Coarse Actor, Fine Actor, comparison. Stages meet on disk."""
