"""Check of a model folder for llama.cpp's convert_hf_to_gguf.py, which makes a GGUF file of it."""

from pathlib import Path
from typing import Any

from lite_c2f.backbone.pair import read_config, read_vocabulary
from lite_c2f.backbone.weights import INDEX, read_index, weight_files
from lite_c2f.errors import C2FError
from lite_c2f.fine.delta import DTYPES
from lite_c2f.fine.report import REPORT
from lite_c2f.fine.shards import read_model
from lite_c2f.storage.files import read_json

NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# model_type whose vocabulary the converter reads from tokenizer.model alone (llama.cpp 0.4.0)
SENTENCEPIECE_ALONE = ("gemma", "gemma2", "phi3")


def conversion_report(folder: Path) -> tuple[str, list[str]]:
    """(one line on what the folder holds, a sentence with its remedy for each thing in the converter's way).

    Whether the converter knows the family and the way its vocabulary splits text, only the converter itself can say.
    """
    problems: list[str] = []
    try:
        config = read_config(folder)
        problems += _config_problems(folder, config)
        weights, found = _weights(folder, config)
        problems += found
        tokenizer, found = _tokenizer(folder, config)
        problems += found
    except C2FError as error:
        return "see problems", [*problems, str(error)]
    return ("see problems" if problems else f"ready: {weights}, {tokenizer}"), problems


def _config_problems(folder: Path, config: dict[str, Any]) -> list[str]:
    problems = []
    if not config.get("architectures"):
        problems.append(
            f"'config.json' of '{folder}' has no 'architectures', by which the converter knows the model; add it, such "
            'as ["LlamaForCausalLM"]'
        )
    if config.get("quantization_config"):
        problems.append(
            f"'config.json' of '{folder}' has 'quantization_config'; convert the model before it was quantised"
        )
    return problems


def _weights(folder: Path, config: dict[str, Any]) -> tuple[str, list[str]]:
    """Files of the weights; raises ModelError for an index that does not fit them."""
    problems = []
    files = weight_files(folder)
    strays = sorted({path.name for path in folder.glob("model*.safetensors")} - {file.name for file in files})
    if strays:
        problems.append(
            f"'{folder}' holds '{strays[0]}' beside the model's own files, and the converter may read it; remove it"
        )
    tensors = [entry for entries in read_model(folder).values() for entry in entries]
    if (folder / INDEX).is_file() and read_index(folder).keys() != {entry.name for entry in tensors}:
        problems.append(
            f"'{INDEX}' of '{folder}' does not list the model's tensors; remove that file"
        )  # beside one file
    sizes: dict[str, int] = {}
    for entry in tensors:
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size
    packed = sorted(sizes.keys() - DTYPES.keys())
    if packed:
        problems.append(f"'{folder}' has {packed[0]} weights; convert the model before it was quantised")
        return "", problems
    stored = NAMES[max(sizes, key=lambda dtype: sizes[dtype])]
    named = config.get("dtype") or config.get("torch_dtype")
    if named not in (None, "auto", stored):
        problems.append(
            f"'config.json' of '{folder}' says {named} and most weights are {stored}; correct 'dtype' there, or "
            "save the model again"
        )
    return f"{len(files)} file{'s' if len(files) > 1 else ''} of {stored}", problems


def _tokenizer(folder: Path, config: dict[str, Any]) -> tuple[str, list[str]]:
    """Files of the tokenizer; raises ModelError for a vocabulary that cannot be read."""
    problems = []
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if not settings_file.is_file():
        problems.append(f"'{folder}' has no 'tokenizer_config.json'; copy it from the model that this was made from")
    kind = config.get("model_type")
    alone = kind in SENTENCEPIECE_ALONE and settings.get("tokenizer_class") != "GPT2Tokenizer"
    if alone and not model_file.is_file():
        problems.append(
            f"'{folder}' has no 'tokenizer.model', from which the converter reads the vocabulary of the family {kind}; "
            "copy it from the model that this was made from"
        )
    elif not json_file.is_file() and not model_file.is_file():
        problems.append(
            f"'{folder}' has neither 'tokenizer.json' nor 'tokenizer.model'; copy the tokenizer's files from the model "
            "that this was made from"
        )
    rows = config.get("vocab_size")
    if json_file.is_file() and isinstance(rows, int) and (last := max(read_vocabulary(folder).values())) >= rows:
        problems.append(
            f"the tokenizer of '{folder}' has the id {last}, and the model {rows} rows; take this model's tokenizer"
        )
    template = (folder / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))
    if not template and (folder / REPORT).is_file():
        problems.append(
            f"'{folder}' was merged into an instruct model and has no chat template; copy chat_template.jinja, or "
            "tokenizer_config.json, from there"
        )
    files = " and ".join(file.name for file in (json_file, model_file) if file.is_file())
    return f"{files}, {'with' if template else 'without'} a chat template", problems
