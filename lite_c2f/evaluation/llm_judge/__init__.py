"""Judging by a language model, as in MT-Bench: answers in pairs in both orders, or graded one at a time."""
