"""Gradio views of a run, served to this machine alone by default; no request leaves it.

To add a button to the chat page: `compare.py` lays it out (`_lay_out`) and connects it (`_connect`); what it does is a
method in `handlers.py`. `templates/` has HTML, `store/` saved conversations and votes, `runs/` the state of runs.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read whenever a page is built: telemetry and the check for updates
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported; Gradio sends through it
