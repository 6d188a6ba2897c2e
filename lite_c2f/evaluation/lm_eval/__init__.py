"""General benchmarks by lm-evaluation-harness, over the actors in memory."""
