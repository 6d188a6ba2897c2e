"""Mistral-C2F on one GPU: reward modelling, PPO with Continuous Maximization, the Knowledge Residue Merger.

The public names are imported on first use, so that `import lite_c2f` costs nothing and needs no torch.
"""

import importlib
import logging
import os
from typing import Any

__version__ = "0.1.0"

# OpenMP's threads busy-wait for their next piece of work, by default so long that one other busy process on two cores
# makes training and sampling 5 to 20 times slower (benchmarks/LOG.md). Read when torch is loaded; no effect afterwards.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_PUBLIC = {
    "load_config": "lite_c2f.config.loading",
    "Config": "lite_c2f.config.settings",
    "train": "lite_c2f.pipeline.train",
    "train_reward": "lite_c2f.pipeline.train",
    "train_coarse": "lite_c2f.pipeline.train",
    "merge": "lite_c2f.fine.merge",
    "Treatment": "lite_c2f.fine.sparsify",
    "sweep": "lite_c2f.pipeline.comparison",
    "evaluate": "lite_c2f.pipeline.comparison",
    "judge": "lite_c2f.evaluation.llm_judge.stage",
    "benchmark": "lite_c2f.evaluation.lm_eval.stage",
    "probe": "lite_c2f.evaluation.probe_stage",
    "Chat": "lite_c2f.chat",
    "C2FError": "lite_c2f.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lite_c2f' has no attribute {name!r}")
    # Before libraries are imported: notices of theirs that nobody can act on.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
