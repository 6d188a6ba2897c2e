"""State of the GPU benchmark: shape, model folder, settings, figures so far, and the peak of allocated memory."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from models import EOS, SMALL, machine, save_tokenizer
from transformers import MistralConfig, MistralForCausalLM

SEVEN_B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
CARD, CAP_GIB = 24.0, 22.0


class GpuRun:
    """State that the parts share: the models' folder, the settings, the figures so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.tiny = options, options.tiny
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.prompt = 16 if self.tiny else 256
        self.vocabulary = 2048 if self.tiny else 32000
        self.folder = Path(options.work or tempfile.mkdtemp()) / ("tiny" if self.tiny else "7b")
        self.result: dict[str, Any] = {"benchmark": "gpu", "model": options.model, "tiny": self.tiny, **machine()}

    def note(self, name: str, value: Any, *, quiet: bool = False) -> None:
        """Add a figure, and write all of them to the file."""
        self.result[name] = value
        if not quiet:
            print(f"{name}: {json.dumps(value)}", flush=True)
        if self.options.out:
            self.options.out.parent.mkdir(parents=True, exist_ok=True)
            self.options.out.write_text(json.dumps(self.result, indent=2) + "\n", encoding="utf-8")

    def build(self) -> None:
        """Random weights in bfloat16 and a tokenizer, once."""
        if (self.folder / "tokenizer.json").is_file():
            return
        shape = SMALL if self.tiny else SEVEN_B
        torch.manual_seed(0)
        config = MistralConfig(vocab_size=self.vocabulary, bos_token_id=1, eos_token_id=EOS, **shape)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                model = MistralForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
        model.save_pretrained(self.folder, max_shard_size="4GB")
        save_tokenizer(self.folder, self.vocabulary)
        del model
        self.fresh()

    def config(self, *more: str) -> Any:
        from lite_c2f.config.loading import load_config

        settings = [
            f"model.base={self.folder}",
            f"model.instruct={self.folder}",
            f"data.max_prompt_tokens={self.prompt}",
            f"hardware.vram_gib={CARD}",
            f"coarse.rollouts={self.options.rollouts}",
            "coarse.minibatches=1",
            "coarse.epochs=1",
        ]
        return load_config({}, [*settings, *more])

    def fresh(self) -> None:
        from lite_c2f.runtime.batch_size import free

        free()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)

    def against(self, predicted: float) -> dict[str, float | None]:
        """Predicted and measured peak."""
        measured, planned = self.peak_gib(), round(predicted / 2**30, 3)
        ratio = round(planned / measured, 3) if measured else None
        return {"predicted_gib": planned, "measured_gib": measured, "predicted_over_measured": ratio}
