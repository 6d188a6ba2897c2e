"""Sizes of the parts of a run, in bytes, from the model's shape. Loads no weights; no torch for models like Llama.

Weights, adapters, optimiser and cache are counted: by formula for layers like Llama's, without their biases (at most
0.02%); for others exactly, on Transformers' own class on the meta device. Only linear layers become 4-bit and get an
adapter.

Activations are per token of a micro-batch and were measured with the allocator's own trace (benchmarks/memory.py
compares them with a real update); attention is flash attention, which stores nothing of size (tokens x tokens).
Widths: h hidden, i intermediate, k keys and values, r rank, L layers; b bytes per number, 2 in bfloat16.

    forward only         4 b (i + h)                               the peak of one layer's MLP
    forward + backward   b L h + 9 b h + 6 b i + 2 b k + 6 b r     checkpoints, and one layer with its backward
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.errors import ModelError
from lite_c2f.gguf import is_packed, unpacked

GIBIBYTE = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, its 8-bit block scale, the scale's own scale
PROMPT_TOKENS = 4096  # most tokens of prompts that the sampler reads in one forward pass
HEAD_TILE = (4096, 4096)  # tokens and words of a tile of logits, in TRL's chunked log-probabilities
CPU_HEAD_TILE = (256, 2048)  # and in ours: `FrozenHeadLogprobs.TILE`
WORKSPACE = 64 * 2**20  # of cuBLAS and the recorded graphs


LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")  # seven linear modules per layer, and norms


class CountedWeights(NamedTuple):
    """Weights of a model's decoder, counted module by module."""

    linear: dict[str, tuple[int, int]]  # by a module's last name: weights, and inner plus outer widths, of all layers
    other: int  # norms, biases, learned positions
    embeddings: int  # of embeddings and head; a shared matrix counts once
    scores: int = 0  # heads whose attention scores are stored because SDPA cannot be used


class Shape(NamedTuple):
    """Sizes of a model, from its config.json."""

    hidden: int
    layers: int
    intermediate: int
    query: int  # width of queries: heads times head_dim
    key_value: int  # width of keys, and of values
    vocabulary: int
    context: int
    tied: bool = False  # head and embeddings are one matrix
    counted: CountedWeights | None = None  # for layers that are not like Llama's

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Widths, in and out, of a layer's linear modules."""
        h, i, q, kv = self.hidden, self.intermediate, self.query, self.key_value
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def inputs(self) -> list[int]:
        """Input widths of a layer's linear modules, ascending."""
        return sorted({before for before, _ in self.modules.values()})

    @property
    def linear(self) -> int:
        """Weights of all linear layers but the head."""
        if self.counted:
            return sum(weights for weights, _ in self.counted.linear.values())
        return self.layers * sum(inner * outer for inner, outer in self.modules.values())

    @property
    def other(self) -> int:
        """Weights that are neither of linear layers nor of the embeddings; they stay in the compute dtype."""
        return self.counted.other if self.counted else (2 * self.layers + 1) * self.hidden

    @property
    def weights(self) -> int:
        """All weights of the causal language model."""
        return self.linear + self.other + self.embeddings

    @property
    def embeddings(self) -> int:
        """Weights of embeddings and head."""
        if self.counted:
            return self.counted.embeddings
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    def adapter(self, rank: int, targets: Sequence[str] | None = None) -> int:
        """Weights of one LoRA on these modules of every layer (default: on all)."""
        if self.counted:
            widths = {name: both for name, (_, both) in self.counted.linear.items()}
        else:
            widths = {name: self.layers * (inner + outer) for name, (inner, outer) in self.modules.items()}
        return rank * sum(both for name, both in widths.items() if targets is None or name in targets)


ASSUMED = "Mistral-7B's shape, ASSUMED for a hub name that is not downloaded yet"
MISTRAL_7B = Shape(4096, 32, 14336, 4096, 1024, 32000, 32768)
KNOWN_SHAPES = {
    "toy": Shape(128, 3, 256, 128, 64, 576, 4096),
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "mistralai/Mistral-7B-v0.3": MISTRAL_7B._replace(vocabulary=32768),
}


def model_shape(model: str) -> tuple[Shape, str]:
    """(shape of a model, its origin): a local folder, the hub's cache, or a known name.

    An unknown hub name that is not in the cache gets Mistral-7B's shape. Raises ModelError for a folder without a
    readable config.json.
    """
    if model == "toy":
        return KNOWN_SHAPES[model], "the toy world"
    file = Path(unpacked(model) if is_packed(model) else model) / "config.json"
    if not file.is_file():
        if any(Path(model).glob("*.gguf")):
            raise ModelError.for_gguf(f"model '{model}'")
        if Path(model).is_dir() or model.startswith((".", "/", "~")):
            raise ModelError.because(f"model '{model}': no config.json", "a model folder", "check model.base")
        cached = cached_folder(model)
        if cached is None:
            if model in KNOWN_SHAPES:
                return KNOWN_SHAPES[model], model
            return MISTRAL_7B, ASSUMED
        file = cached / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        like = config.get("model_type", LIKE_LLAMA[0]) in LIKE_LLAMA
        shape = shape_of(config) if like else count_shape(file.parent)
        if not all(isinstance(size, int) and size > 0 for size in shape[:7]):
            raise ValueError
        return shape, str(file)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ModelError.because(
            f"'{file}' is not a decoder's configuration", "hidden_size, num_hidden_layers, ...", "use a Mistral model"
        ) from None


def shape_of(config: Any) -> Shape:
    """The shape of a model like Llama, from the keys of its config.json."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["intermediate_size"],
        width * heads,
        width * (config.get("num_key_value_heads") or heads),
        config["vocab_size"],
        config.get("max_position_embeddings", MISTRAL_7B.context),
        bool(config.get("tie_word_embeddings", False)),
    )


def count_shape(folder: Path) -> Shape:
    """The shape of a folder's model, by Transformers' own class on the meta device: half a second, and no memory.

    The class knows its own keys and defaults: Gemma ties its head without a key for it, GPT-2 calls its width n_embd.
    Raises ModelError for a model that Transformers cannot build from its config.json alone.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        embedded, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
    except Exception as error:  # any, for a configuration of another version
        reason = " ".join(str(error).split())[:120]
        raise ModelError.because(
            f"'{folder / 'config.json'}': the sizes of its decoder are not known ({reason})",
            "a causal decoder that Transformers knows",
            "choose a model of a family that docs/models.md lists",
        ) from None
    linear: dict[str, tuple[int, int]] = {}
    widest = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module.weight is not head:
            last, weight = name.rpartition(".")[2], module.weight
            weights, widths = linear.get(last, (0, 0))
            linear[last] = weights + weight.numel(), widths + sum(weight.shape)
            widest = max(widest, weight.shape[0 if isinstance(module, Conv1D) else 1])
    rest = sum(weight.numel() for weight in model.parameters() if weight is not embedded and weight is not head)
    counted = CountedWeights(
        linear,
        rest - sum(weights for weights, _ in linear.values()),
        embedded.numel() + (0 if head is embedded else head.numel()),
        0 if type(model)._supports_sdpa else heads,
    )
    return Shape(
        config.hidden_size,
        config.num_hidden_layers,
        widest,  # input width of the MLP's last layer
        width * heads,
        width * (getattr(config, "num_key_value_heads", None) or heads),
        config.vocab_size,
        getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or MISTRAL_7B.context,
        head is embedded,
        counted,
    )


def cached_folder(model: str) -> Path | None:
    """The folder with config.json of a hub model in the local cache, or of a GGUF model; nothing is downloaded."""
    if is_packed(model):
        return unpacked(model)
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(model, "config.json")
    except ValueError:  # not a valid hub name
        return None
    return Path(file).parent if isinstance(file, str) else None


class Bytes(NamedTuple):
    """The sizes of a run's parts. dtype: bytes per number of the compute dtype; quantized: NF4 linear layers."""

    shape: Shape
    rank: int
    targets: tuple[str, ...] | None  # modules with an adapter; None: all linear ones
    dtype: int
    quantized: bool
    checkpointing: bool
    on_gpu: bool
    longest_row: int = 0  # tokens; used if attention scores are stored

    @property
    def base(self) -> float:
        """A model's weights as loaded: 4-bit linear layers; embeddings, head and norms in the compute dtype."""
        per_weight = NF4_BYTES if self.quantized else self.dtype
        return self.shape.linear * per_weight + (self.shape.embeddings + self.shape.other) * self.dtype

    @property
    def classifier(self) -> float:
        """The base as the reward stage loads it, without its head; a tied head has no weights of its own."""
        return self.base - (0 if self.shape.tied else self.dtype * self.shape.embeddings / 2)

    @property
    def adapter(self) -> int:
        """One adapter, or its gradients, or one of AdamW's two moments: float32."""
        return 4 * self.shape.adapter(self.rank, self.targets)

    @property
    def adapter_copy(self) -> int:
        """An adapter in the compute dtype, as used by sampling and cached by autocast."""
        return self.dtype * self.shape.adapter(self.rank, self.targets) if self.dtype < 4 else 0

    def cache(self, tokens: int) -> int:
        """KV cache of so many tokens."""
        return 2 * self.shape.layers * self.shape.key_value * self.dtype * tokens

    def forward(self, tokens: int) -> float:
        """A forward pass without gradients."""
        i, h = self.shape.intermediate, self.shape.hidden
        at_product = self.dtype * (2 * i + 4 * h) + self._scores(3)
        adapter = 2 * self.dtype * i  # its product, plain and scaled, once the weight is no longer unpacked
        return at_product * tokens + max(adapter * tokens, self._unpacked)

    def backward(self, tokens: int) -> float:
        """A forward and a backward pass."""
        s, b = self.shape, self.dtype
        layer = b * (9 * s.hidden + 6 * s.intermediate + 2 * s.key_value + 6 * self.rank) + self._scores(6)
        stored = b * s.layers * s.hidden if self.checkpointing else (s.layers - 1) * layer
        return (stored + layer) * tokens + self.adapter_copy

    def head(self, tokens: int, *, gradients: bool) -> float:
        """Log-probabilities of so many response tokens: their hidden states, and one tile of logits.

        On a GPU TRL's kernel reduces the tile in place; on a CPU ours has small tiles, and some float32 states more.
        """
        rows, words = HEAD_TILE if self.on_gpu else CPU_HEAD_TILE
        tile = min(tokens, rows) * min(self.shape.vocabulary, words)
        if self.on_gpu:
            states = self.dtype + (4 + self.dtype if gradients else 0)
            return tokens * states * self.shape.hidden + tile * self.dtype
        states = self.dtype + 4 * (4 if gradients else 2)
        return tokens * states * self.shape.hidden + tile * (self.dtype + 4)

    def drawing(self, rows: int) -> float:
        """One step of the sampler: the MLP of one token per row, the logits and the copies needed for drawing."""
        return rows * (4 * self.dtype * self.shape.intermediate + self.shape.vocabulary * (self.dtype + 21))

    def _scores(self, copies: int) -> float:
        """Attention scores of one token in one layer, if they are stored: some copies, and a float32 softmax."""
        heads = self.shape.counted.scores if self.shape.counted else 0
        return heads * self.longest_row * (copies * self.dtype + 4)

    @property
    def _unpacked(self) -> float:
        """The widest linear layer, unpacked from 4 bits for a product."""
        return self.dtype * self.shape.hidden * self.shape.intermediate if self.quantized else 0.0
