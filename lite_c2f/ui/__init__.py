"""Gradio views of a run."""
