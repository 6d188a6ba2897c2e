"""Model families that llama.cpp has under other names: architecture, shapes, tensor names, and the order of rows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

from lite_c2f.errors import ModelError
from lite_c2f.gguf.read import INSTALL


class GgufFamily(NamedTuple):
    """How llama.cpp's own converter writes a family of Transformers."""

    architecture: str  # general.architecture
    interleaved: bool = False  # rows of queries and keys: each head's two rotary halves alternate
    fused: bool = False  # one matrix for queries, keys and values, and one for gate and up


# model_type of config.json -> family. All were compared with a real llama.cpp (tests/gguf/test_llama_cpp.py).
FAMILIES = {
    "llama": GgufFamily("llama", interleaved=True),
    "mistral": GgufFamily("llama", interleaved=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "gemma": GgufFamily("gemma"),
    "phi3": GgufFamily("phi3", fused=True),
}
DEFAULT_HEAD_DIM = {"qwen3": 128, "gemma": 256}  # where config.json has none, as Transformers 5.23


class Linear(NamedTuple):
    """A linear layer of a model in llama.cpp's terms."""

    name: str  # of its weight, such as blk.0.attn_q.weight
    shape: tuple[int, int]  # (out, in)
    heads: int  # whose rows are interleaved; 0: the rows keep their order


def family_of(config: Mapping[str, Any], where: str) -> GgufFamily:
    """The family of a configuration (config.json). where: the model, for messages. Raises ModelError naming others."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        got = f"'{where}' is of the family '{kind}', whose names in llama.cpp are not known here"
        remedy = "merge the adapter with `lite-c2f merge`, and convert the merged folder with llama.cpp's own program"
        raise ModelError.because(got, "one of " + ", ".join(FAMILIES), remedy)
    return FAMILIES[kind]


def linear_layers(config: Mapping[str, Any], where: str) -> dict[str, Linear]:
    """{weight name in Transformers: the same layer in llama.cpp} of all linear layers but the head.

    Names are those of the map in the `gguf` package. where: the model, for messages. Raises ModelError for other
    families, for sizes that are missing, and without that package.
    """
    family = family_of(config, where)
    try:
        import gguf
    except ImportError:
        raise ModelError.because("no package that knows llama.cpp's names", "the package gguf", INSTALL) from None
    number = {name: id_ for id_, name in gguf.MODEL_ARCH_NAMES.items()}[family.architecture]
    try:
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        key_heads = int(config.get("num_key_value_heads") or heads)
        width = int(config.get("head_dim") or DEFAULT_HEAD_DIM.get(str(config["model_type"]), hidden // heads))
    except (KeyError, TypeError, ValueError) as error:
        got = f"config.json of '{where}' lacks a size ({error})"
        raise ModelError.because(got, "the configuration of a language model", "download the model again") from None
    queries, keys = heads * width, key_heads * width
    modules: dict[str, tuple[tuple[int, int], int]] = {
        "self_attn.o_proj": ((hidden, queries), 0),
        "mlp.down_proj": ((hidden, inner), 0),
    }
    if family.fused:
        modules["self_attn.qkv_proj"] = ((queries + 2 * keys, hidden), 0)
        modules["mlp.gate_up_proj"] = ((2 * inner, hidden), 0)
    else:
        modules["self_attn.q_proj"] = ((queries, hidden), heads if family.interleaved else 0)
        modules["self_attn.k_proj"] = ((keys, hidden), key_heads if family.interleaved else 0)
        modules["self_attn.v_proj"] = ((keys, hidden), 0)
        modules["mlp.gate_proj"] = modules["mlp.up_proj"] = ((inner, hidden), 0)
    names = gguf.get_tensor_name_map(number, layers)
    found = {}
    for layer in range(layers):
        for module, (shape, turned) in modules.items():
            stem = f"model.layers.{layer}.{module}"
            found[f"{stem}.weight"] = Linear(f"{names.get_name(stem)}.weight", shape, turned)
    return found


def interleave(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The rows of a query or key projection in llama.cpp's order.

    Transformers rotates row i of a head's first half with row i of its second half; the `llama` architecture rotates
    neighbours. (heads * 2 * n, columns) -> the same shape: row i, row n + i, row i + 1, ... of each head.

    >>> interleave(np.arange(8)[:, None], 2)[:, 0].tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)
