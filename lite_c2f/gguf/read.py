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
    state = file.stat()
    folder = cache_root() / "gguf" / f"{_digest(file.resolve(), state.st_size, state.st_mtime_ns)}-{FORMAT}"
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(Path(f"{folder}.lock")):
            if not is_whole(folder):  # the process that held the lock may have made it
                _convert(file, folder, on_message or (lambda _: None))
    return folder


@functools.cache
def _digest(file: Path, size: int, modified: int) -> str:
    """Of a file's content; read once in a process, for it may be gigabytes."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold a file's lock, after waiting for the process that holds it."""
    with file.open("a", encoding="utf-8") as lock:
        while not take(lock):
            time.sleep(0.2)
        yield


def is_whole(folder: Path) -> bool:
    """Is this a folder that was published here? The configuration is in it: folders appear whole or not at all."""
    return (folder / "config.json").is_file()


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
    scaling = _value(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none") or any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        # Transformers 5.23 reads neither: long contexts would be read as if there were no scaling, without a warning.
        got = f"'{file}' scales its rotary frequencies, which Transformers does not read from a GGUF file"
        raise ModelError.because(
            got, "a model without (Llama 3.0, not 3.1)", "use the model's folder or hub name instead"
        )
    kind, split = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre")
    if kind is None:
        raise ModelError.because(f"'{file}' has no tokenizer", "a model with its tokenizer", "use another file")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and split not in SPLITS):
        got = f"'{file}' has a tokenizer of the kind '{split if kind == 'gpt2' else kind}'"
        expected = "SentencePiece (llama) or one of " + ", ".join(SPLITS)
        raise ModelError.because(got, expected, "use the model's folder or hub name instead")
    return reader


def _reader(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError.because(f"'{file}', and no package that reads it", "the package gguf", INSTALL) from None
    if not file.is_file():
        raise ModelError.because(f"'{file}' is not there", "a GGUF file", "correct the path")
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:  # it has no error of its own
        reason = "it does not begin as one" if "magic" in str(error) else "it ends too early, or is damaged"
        raise ModelError.because(
            f"'{file}' is no whole GGUF file: {reason}", "a GGUF file", "download it again"
        ) from None


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _convert(file: Path, folder: Path, on_message: Callable[[str], None]) -> None:
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
            model = AutoModelForCausalLM.from_pretrained(
                where,
                gguf_file=name,
                quantization_config=GgufConfig(dequantize=True),
                dtype="bfloat16",
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError.because(
                f"'{file}' cannot be read: {reason}", "a GGUF file that Transformers reads", "use the model's folder"
            ) from None
        vars(model.config).pop("quantization_config", None)
        model.config.name_or_path = ""
        vars(model).update(hf_quantizer=None)  # with one, Transformers 5.23 saves no model that it unpacked
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        _strip_source(unfinished)


def _strip_source(folder: Path) -> None:
    """Leave out of config.json that its weights were packed."""
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("quantization_config", None)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
