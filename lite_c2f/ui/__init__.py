"""Gradio views of a run, served to this machine unless told otherwise; no request leaves it."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read whenever a page is built: telemetry and the look for updates
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported; Gradio sends through it
