"""Export of an adapter as a GGUF LoRA, which llama.cpp adds to any quantisation of its model at any scale."""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lite_c2f import __version__
from lite_c2f.backbone.pair import read_config
from lite_c2f.errors import ConfigError, ModelError, RunError
from lite_c2f.fine.adapter import Adapter, read_adapter
from lite_c2f.fine.checks import SAME_BASE_REMEDY, check_disk, model_folder, resolved_path
from lite_c2f.fine.delta import Absolute, Bias, LowRank, TokenRows
from lite_c2f.fine.gguf_companions import MODELFILE, README, companions
from lite_c2f.fine.ratios import LayerRatios, check_ratio, choose_ratios, read_layer_ratios
from lite_c2f.fine.tensor_names import is_embedding, is_reward_head
from lite_c2f.gguf import is_packed
from lite_c2f.gguf.families import Linear, family_of, interleave, linear_layers
from lite_c2f.storage.files import read_json, sync

MERGE_REMEDY = "merge it with `lite-c2f merge`, and convert the merged folder: see docs/llama-cpp.md"
KINDS = {  # deltas that are no product of two matrices
    Bias: "a bias",
    Absolute: "whole weights (modules_to_save, bias)",
    TokenRows: "rows of single tokens (trainable_token_indices)",
}
FILE_TYPES = {"float32": 0, "float16": 1}  # general.file_type


class ExportedAdapter(NamedTuple):
    """What an export wrote."""

    file: Path
    architecture: str  # of llama.cpp
    weights: int  # that it changes
    rank: int  # the largest
    alpha: float  # adapter.lora.alpha; llama.cpp multiplies B @ A by scale * alpha / rank
    size: int  # bytes of the file
    template: str | None  # name of the chat template in the Modelfile; None: it could not be expressed there
    notes: tuple[str, ...]


class _Pair(NamedTuple):
    """One weight's change: factor * B @ A at scale 1."""

    layer: Linear
    delta: LowRank
    factor: float  # scaling * ratio

    @property
    def rank(self) -> int:
        return self.delta.down.shape[0]


def export_adapter(
    adapter: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    ratio: float = 1.0,
    layer_ratios: LayerRatios | None = None,
    dtype: str = "float32",
    suggested_scale: float = 1.0,
    template_kwargs: Mapping[str, Any] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> ExportedAdapter:
    """Write the residue of a LoRA or rsLoRA adapter as a GGUF LoRA, with an Ollama Modelfile and a README beside it.

        W_shown = W + scale * ratio * dW,    dW = scaling * B @ A

    llama.cpp computes scale * alpha / rank * B @ A with one alpha for the file. So alpha is taken from most of the
    weights, ratio included, and what differs from it (rsLoRA with rank patterns, layer_ratios) is multiplied into B;
    weights that agree keep the adapter's own bits. Rows of queries and keys follow the order that the architecture has
    in llama.cpp. Memory: one factor at a time.

    adapter: folder of the adapter; model: folder (config.json and tokenizer; no weights are read) or .gguf file of the
    model that it is added to; out: the new .gguf file. ratio, layer_ratios: folded in, as `merge` has them; leave them
    out to choose the scale in llama.cpp. dtype: "float32" or "float16". suggested_scale: for the README.
    template_kwargs: variables of the chat template.

    `out` appears whole or not at all. Raises ConfigError for settings; ModelError for adapters other than plain LoRA
    and rsLoRA of linear layers, and for families without a name map; RunError where `out` or a file beside it exists.

    >>> export_adapter("runs/a/coarse/adapter", "Mistral-7B-Instruct-v0.1", "residue/residue.gguf").weights
    224
    """
    notice = on_message or (lambda text: None)
    check_ratio("ratio", ratio, allow_negative=False)
    patterns = read_layer_ratios(layer_ratios, allow_negative=False)
    if dtype not in FILE_TYPES:
        raise ConfigError.because(f"'dtype' is {dtype!r}", f"one of {', '.join(FILE_TYPES)}", "choose one")
    file, folder = resolved_path(out), model_folder(model, on_message)
    _check_free(file)
    config = read_config(folder)
    layers = linear_layers(config, str(model))
    with contextlib.ExitStack() as stack:
        residue = read_adapter(adapter, stack)
        deltas = _checked_deltas(residue, layers, str(model))
        ratios = choose_ratios(list(deltas), ratio, patterns)
        pairs = [
            _Pair(layers[name], delta, delta.scaling * ratios[name])
            for name, delta in deltas.items()
            if delta.scaling * ratios[name]
        ]
        if not pairs:
            raise ModelError.because("the adapter at this ratio changes nothing", "a ratio above 0", "raise it")
        alpha = _common_alpha(pairs)
        check_disk(file, sum(_bytes_of(pair, dtype) for pair in pairs))
        stack.enter_context(_made_folder(file.parent))
        unfinished = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{file.name}.partial-", dir=file.parent))
        )
        _write(unfinished / file.name, family_of(config, str(model)).architecture, pairs, alpha, dtype)
        written = ExportedAdapter(
            file=file,
            architecture=family_of(config, str(model)).architecture,
            weights=len(pairs),
            rank=max(pair.rank for pair in pairs),
            alpha=alpha,
            size=(unfinished / file.name).stat().st_size,
            template=None,
            notes=residue.notes,
        )
        folded = ratio != 1.0 or bool(patterns)  # ratio 1 in the file is the file without a ratio
        scale = 1.0 if folded else suggested_scale
        texts, template = companions(file.name, str(model), folder, scale, folded, template_kwargs or {})
        for name, text in texts.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        _publish(unfinished, file)
    for note in written.notes:
        notice(f"note: {note}")
    return written._replace(template=template)


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    ratio: float | None = None,
    layer_ratios: LayerRatios | None = None,
    dtype: str = "float32",
    on_message: Callable[[str], None] | None = None,
) -> ExportedAdapter:
    """`export_adapter` of a run's Coarse Actor, for its instruct model; None as ratio folds none in.

    The README then suggests the run's ratio as scale. Raises RunError unless the run has a Coarse and a Fine Actor.
    """
    from lite_c2f.runs.manifest import open_run
    from lite_c2f.runs.published import coarse_adapter

    config, models = open_run(run)
    merged = read_json(Path(run) / "fine" / "merge.json")
    if merged.get("layer_ratios") and layer_ratios is None and on_message:
        on_message(
            "note: this run merged with ratios by layer; --layer-ratios RUN/fine/layer-ratios.yaml folds them in"
        )
    return export_adapter(
        coarse_adapter(Path(run), config.coarse.use),
        config.model.instruct if is_packed(config.model.instruct) else models.instruct,
        out,
        ratio=1.0 if ratio is None else ratio,
        layer_ratios=layer_ratios,
        dtype=dtype,
        suggested_scale=float(merged["ratio"]) if ratio is None else 1.0,
        template_kwargs=config.model.chat_template_kwargs,
        on_message=on_message,
    )


def _check_free(file: Path) -> None:
    """Raise RunError unless the file can be made, with the two files beside it."""
    if file.suffix.lower() != ".gguf":
        got = f"the output '{file}' does not end in .gguf"
        raise ConfigError.because(got, "the name of a GGUF file", "write e.g. residue/residue.gguf")
    for path in (file, file.with_name(MODELFILE), file.with_name(README)):
        if path.exists():
            remedy = "choose a folder of its own for it, or remove that file"
            raise RunError.because(f"'{path}' exists", "a new file", remedy)


@contextlib.contextmanager
def _made_folder(folder: Path) -> Iterator[None]:
    """Make a folder; after an error one that is empty is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def _checked_deltas(residue: Adapter, layers: Mapping[str, Linear], model: str) -> dict[str, LowRank]:
    """The adapter's deltas by weight name. Raises ModelError unless each is a LoRA of a linear layer of the model."""
    deltas: dict[str, LowRank] = {}
    for name, delta in residue.deltas.items():
        if is_reward_head(name):
            remedy = "export the adapter of the policy, not that of a reward model"
            raise ModelError.because(f"the adapter changes '{name}', a classifier's head", "linear layers", remedy)
        if is_embedding(name):
            got = f"the adapter changes '{name}', which llama.cpp's adapters do not carry for all models"
            raise ModelError.because(got, "a change of the layers alone", MERGE_REMEDY)
        if not isinstance(delta, LowRank):
            got = f"the adapter holds {KINDS[type(delta)]}: '{name}'"
            raise ModelError.because(got, "LoRA of linear layers alone", MERGE_REMEDY)
        if name not in layers:
            got = f"the adapter changes '{name}', which '{model}' does not have"
            raise ModelError.because(got, "its linear layers", SAME_BASE_REMEDY)
        if delta.shape != layers[name].shape:
            got = f"the delta of '{name}' is {delta.shape}, its weight in '{model}' {layers[name].shape}"
            raise ModelError.because(got, "the same shape", SAME_BASE_REMEDY)
        deltas[name] = delta
    if residue.copies:
        got = f"the adapter holds '{next(iter(residue.copies))}', a weight of its base"
        raise ModelError.because(got, "LoRA of linear layers alone", MERGE_REMEDY)
    if not any(delta.up.read().any() for delta in deltas.values()):
        raise ModelError.because("every lora_B of the adapter is 0", "a trained adapter", "train it first")
    return deltas


def _common_alpha(pairs: list[_Pair]) -> float:
    """The factor times rank that most weights share; in float32, as the file holds it. Never 0, which means none."""
    return float(np.float32(Counter(pair.factor * pair.rank for pair in pairs).most_common(1)[0][0]))


def _bytes_of(pair: _Pair, dtype: str) -> int:
    return np.dtype(dtype).itemsize * pair.rank * sum(pair.delta.shape)


def _write(file: Path, architecture: str, pairs: list[_Pair], alpha: float, dtype: str) -> None:
    """Write the GGUF file, one matrix in memory at a time."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_file_type(FILE_TYPES[dtype])
        writer.add_name(file.stem)
        writer.add_description(f"LoRA adapter exported by lite_c2f {__version__}")
        for pair in pairs:
            for suffix, shape in (("a", pair.delta.down.shape), ("b", pair.delta.up.shape)):
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                writer.add_tensor_info(f"{pair.layer.name}.lora_{suffix}", shape, np.dtype(dtype), size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for pair in pairs:
            writer.write_tensor_data(_stored(pair.delta.down.read().numpy(), dtype, pair))
            writer.write_tensor_data(_stored(_up(pair, alpha), dtype, pair))
        writer.flush()
    finally:
        writer.close()


def _up(pair: _Pair, alpha: float) -> npt.NDArray[Any]:
    """B (out, r) with its rows in llama.cpp's order, and with what its factor differs from alpha / rank."""
    up = pair.delta.up.read().numpy()
    if np.float32(pair.factor * pair.rank) != np.float32(alpha):
        up = (up.astype(np.float64) * (pair.factor * pair.rank / alpha)).astype(np.float32)
    return interleave(up, pair.layer.heads) if pair.layer.heads else up


def _stored(matrix: npt.NDArray[Any], dtype: str, pair: _Pair) -> npt.NDArray[Any]:
    """A matrix in the file's dtype. Raises ModelError where float16 cannot hold it."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(matrix, dtype=dtype)
    if not np.isfinite(stored).all():
        raise ModelError.because(f"'{pair.layer.name}' has values beyond {dtype}", "smaller ones", "use float32")
    return stored


def _publish(unfinished: Path, file: Path) -> None:
    """Move the finished files to their places, the adapter last: it is not there without the others."""
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == file.name):
        path.chmod(0o644)
        sync(path)
        shutil.move(path, file.with_name(path.name))
    sync(file.parent)
