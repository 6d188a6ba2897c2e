"""Evaluation: comparison, report, benchmarks, judging by a model, and a probe for unwanted words."""
