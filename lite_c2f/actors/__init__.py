"""The four actors of a run: their models, their answers, and the KL between them."""
