"""The toy world: word problems, two ways to answer them, and a tiny base and instruct model that know both."""

from pathlib import Path

CONFIG = Path(__file__).with_name("toy.yaml")
