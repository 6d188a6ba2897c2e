"""GGUF files: a model is read once into an ordinary folder, which is cached by the file's content.

A folder in the cache is what every other part of the project takes: config.json, bfloat16 safetensors, tokenizer, chat
template, generation config. Quantised weights are unpacked; what their quantisation lost stays lost.
"""

import contextlib
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lite_c2f.errors import ModelError
from lite_c2f.gguf.checks import check_rotary, check_sizes, check_special_tokens, check_tokenizer, check_weights
from lite_c2f.storage.cache import cache_root
from lite_c2f.storage.files import publish_folder
from lite_c2f.storage.lock import take

FORMAT = 1  # of the folders that are made: another one has another place in the cache
INSTALL = "pip install gguf"
# general.architecture: those of which a file made from a tiny model gave its logits back (tests/backbone/test_gguf.py).
ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "stablelm", "gpt2")
# tokenizer.ggml.pre, how a byte-level vocabulary's text is split: Transformers splits any name that it does not know as
# GPT-2 does, without a warning. `smollm` splits digits apart too, which its vocabulary without numbers does anyway.
SPLITS = ("gpt-2", "smollm", "qwen2", "deepseek-r1-qwen", "llama-bpe", "llama3", "llama-v3")


def is_gguf(model: str) -> bool:
    """Does this name a GGUF file, by its ending?"""
    return model.lower().endswith(".gguf")


def gguf_folder(file: Path, on_message: Callable[[str], None] | None = None) -> Path:
    """The model folder of a GGUF file, made now unless the cache has it.

    Two processes that ask for the same file make one folder: the second waits. on_message(text) is called before the
    long part. Raises ModelError for a file that is no whole model of a kind in `ARCHITECTURES`, and when the cache has
    no room.

    >>> gguf_folder(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    PosixPath('/home/me/.cache/lite_c2f/gguf/5ab47e8b1f2f0c5d-1')
    """
    if not file.is_file():
        raise ModelError.because(f"'{file}' is not there", "a GGUF file", "correct the path")
    stamp = _stamp(file)
    folder = cache_root() / "gguf" / f"{_digest(file.resolve(), *stamp)}-{FORMAT}"
    if not is_whole(folder):
        with _cache_errors(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(Path(f"{folder}.lock")):
                if not is_whole(folder):  # the process that held the lock may have made it
                    _convert(file, stamp, folder, on_message or (lambda _: None))
    return folder


def _stamp(file: Path) -> tuple[int, int]:
    """(size in bytes, time of the last change in ns)"""
    with _read_errors(file):
        state = file.stat()
    return state.st_size, state.st_mtime_ns


@contextlib.contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    """In the block, errors of the disk become ModelErrors that name the GGUF file, which may vanish at any time."""
    try:
        yield
    except OSError as error:
        got = f"'{file}' cannot be read ({error.strerror or error})"
        raise ModelError.because(got, "a GGUF file that stays where it is", "correct the path") from None


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """In the block, errors of the disk become ModelErrors: by then the GGUF file has been read."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        remedy = "free some room, or set LITE_C2F_CACHE to a folder on another disk"
        raise ModelError.because(
            f"the cache '{cache}' cannot be written to ({reason})", "one that can", remedy
        ) from None


@functools.cache
def _digest(file: Path, size: int, modified: int) -> str:
    """Of a file's content; read once in a process, for it may be gigabytes."""
    with _read_errors(file), file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold a file's lock, after waiting for the process that holds it."""
    with file.open("a", encoding="utf-8") as lock:
        while not take(lock):
            time.sleep(0.2)
        yield


def is_whole(folder: Path) -> bool:
    """Is this a folder that was published here, whole, and nobody has removed its weights since?"""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def check_gguf(file: Path) -> Any:
    """The reader of a GGUF file (gguf.GGUFReader), after checking that the file is a whole model of a known kind.

    Seconds, for the vocabulary. Raises ModelError with the reason.
    """
    reader = _reader(file)
    architecture, content, parts = (
        _value(reader, key) for key in ("general.architecture", "general.type", "split.count")
    )
    if content == "adapter":
        raise ModelError.because(f"'{file}' is a LoRA adapter", "a model", "give a model's GGUF file, or its folder")
    if (parts or 1) > 1:
        remedy = "join them with llama.cpp's `llama-gguf-split --merge`"
        raise ModelError.because(f"'{file}' is one of {parts} parts", "one file", remedy)
    if architecture not in ARCHITECTURES:
        got = f"'{file}' has the architecture '{architecture}'"
        raise ModelError.because(
            got, "one of " + ", ".join(ARCHITECTURES), "use the model's folder or hub name instead"
        )
    if _value(reader, f"{architecture}.expert_count"):
        raise ModelError.because(f"'{file}' has experts", "a dense model", "use another model")
    get = functools.partial(_value, reader)
    check_sizes(file, architecture, get)
    check_rotary(file, architecture, get, (tensor.name for tensor in reader.tensors))
    kind, split = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre")
    if kind is None:
        raise ModelError.because(f"'{file}' has no tokenizer", "a model with its tokenizer", "use another file")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and split not in SPLITS):
        got = f"'{file}' has a tokenizer of the kind '{split if kind == 'gpt2' else kind}'"
        expected = "SentencePiece (llama) or one of " + ", ".join(SPLITS)
        raise ModelError.because(got, expected, "use the model's folder or hub name instead")
    check_tokenizer(file, kind, get)
    return reader


def _reader(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError.because(f"'{file}', and no package that reads it", "the package gguf", INSTALL) from None
    if not file.is_file():
        raise ModelError.because(f"'{file}' is not there", "a GGUF file", "correct the path")
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:  # it has no error of its own
        if "version" in str(error):
            raise _of_another_format(file) from None
        reason = "it does not begin as one" if "magic" in str(error) else "it ends too early, or is damaged"
        raise ModelError.because(
            f"'{file}' is no whole GGUF file: {reason}", "a GGUF file", "download it again"
        ) from None
    if reader.byte_order != "I":  # the gguf package reads them, Transformers does not
        raise _of_another_format(file)
    return reader


def _of_another_format(file: Path) -> ModelError:
    got = f"'{file}' is GGUF of another version or byte order"
    return ModelError.because(got, "version 2 or 3, little-endian", "download a newer file of the model")


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    try:
        return None if field is None else field.contents()
    except UnicodeDecodeError:
        got = f"'{reader.data.filename}' is no whole GGUF file: {key} is no text, so that it is damaged"
        raise ModelError.because(got, "a GGUF file", "download it again") from None


def _convert(file: Path, stamp: tuple[int, int], folder: Path, on_message: Callable[[str], None]) -> None:
    """Write the folder of a GGUF file, by way of Transformers' reader."""
    reader = check_gguf(file)
    needed, free = 2 * sum(int(tensor.n_elements) for tensor in reader.tensors), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ModelError.because(
            f"'{file}' takes {needed / 2**30:.1f} GiB unpacked; {folder.parent} has {free / 2**30:.1f}",
            "room for it",
            "free some, or set LITE_C2F_CACHE to a folder on another disk",
        )
    on_message(f"unpacking {file.name} into {folder} (once)")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    with contextlib.ExitStack() as stack:
        unfinished = stack.enter_context(publish_folder(folder, replace=True))
        where, name = str(file.parent), file.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                gguf_file=name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `check_weights` names them
                quantization_config=GgufConfig(dequantize=True),
                dtype="bfloat16",
                trust_remote_code=False,
                use_safetensors=True,
            )
        except MemoryError:
            raise
        except Exception as error:  # of any kind, for sizes that no model has
            reason = " ".join(str(error).split())[:200]
            raise ModelError.because(
                f"'{file}' cannot be read: {reason}", "a GGUF file that Transformers reads", "use the model's folder"
            ) from None
        model, loading = loaded
        check_special_tokens(file, tokenizer, functools.partial(_value, reader))
        check_weights(file, model.config.model_type, (tensor.name for tensor in reader.tensors), model, loading)
        _complete_config(model.config, tokenizer, functools.partial(_value, reader))
        vars(model).update(hf_quantizer=None)  # with one, Transformers 5.23 saves no model that it unpacked
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        _strip_source(unfinished)
        if _stamp(file) != stamp:  # the folder would be found under the content that the file had
            raise ModelError.because(f"'{file}' was changed while it was read", "a finished file", "try again")


def _complete_config(config: Any, tokenizer: Any, get: Callable[[str], Any]) -> None:
    """Set what Transformers leaves at its class's defaults: special tokens, and the sliding window."""
    vars(config).pop("quantization_config", None)
    config.name_or_path = ""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    window = get(f"{config.model_type}.attention.sliding_window")
    if window and config.model_type == "phi3":
        config.sliding_window = window
    elif window and window < config.max_position_embeddings:  # within it a window changes nothing
        config.max_position_embeddings = window


def _strip_source(folder: Path) -> None:
    """Leave out of config.json that its weights were packed."""
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("quantization_config", None)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
