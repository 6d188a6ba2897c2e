"""General benchmarks by lm-evaluation-harness, with the actors in memory."""
