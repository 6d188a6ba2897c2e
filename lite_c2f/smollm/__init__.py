"""Data of the embedded real model: questions, its own answers to them, and the rules that order these into pairs."""

from pathlib import Path

SMOLLM = "smollm2"  # as `model.base`, as `model.instruct`, and as a source of data
CONFIG = Path(__file__).with_name("smollm2.yaml")
