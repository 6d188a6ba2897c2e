"""Context of a chat, in tokens of a conversation and its answer, before its models are loaded."""

from pathlib import Path

from lite_c2f.backbone.context import context_length
from lite_c2f.errors import RunError
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.storage.files import read_json

MAX_CONTEXT = 4096  # tokens


def likely_context(models: ModelPair) -> int:
    """The context as config.json of both models has it: for sliders. `context_of` is exact.

    Raises RunError for a config.json that is missing or damaged.
    """
    limits = [MAX_CONTEXT]
    for folder in models:
        config = read_json(Path(folder) / "config.json")
        if not isinstance(config, dict):
            raise RunError.because(f"'{folder}/config.json' is no object", "a model's", "fetch that model again")
        windowed = config.get("use_sliding_window", True)
        limits += [context_length(config) or MAX_CONTEXT, (windowed and config.get("sliding_window")) or MAX_CONTEXT]
    return min(limits)
