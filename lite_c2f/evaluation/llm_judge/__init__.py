"""Judged by a language model: two-turn questions, pairwise in both orders, or one answer at a time."""
