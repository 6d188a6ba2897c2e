"""Files beside an exported GGUF adapter: a Modelfile for Ollama, and a README on its use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_c2f.fine.ollama_template import OllamaTemplate, find_template
from lite_c2f.fine.report import hub_name
from lite_c2f.fine.tokenizer import load_own_tokenizer
from lite_c2f.gguf import is_packed, packed_file

MODELFILE, README = "Modelfile", "README.md"
PLACEHOLDER = "./MODEL.gguf"


def companions(
    adapter: str, model: str, folder: Path, scale: float, folded: bool, variables: Mapping[str, Any]
) -> tuple[dict[str, str], str | None]:
    """({file name: text}, the name of the chat template in the Modelfile or None where it has none).

    adapter: file name of the adapter; model: as it was named; folder: its folder; scale: to suggest; folded: whether a
    ratio is in the adapter already; variables: of the chat template.
    """
    source = str(packed_file(model)) if is_packed(model) else PLACEHOLDER
    name = hub_name(model) or hub_name(str(folder)) or f"the model '{Path(model).name}'"  # no path of this computer
    tokenizer = load_own_tokenizer(folder)
    found = find_template(tokenizer, variables) if tokenizer is not None else None
    end = None if tokenizer is None else tokenizer.eos_token
    texts = {
        MODELFILE: _modelfile(adapter, source, name, scale, found, end),
        README: _readme(adapter, name, scale, folded),
    }
    return texts, found[0].name if found else None


def _modelfile(
    adapter: str, source: str, name: str, scale: float, found: tuple[OllamaTemplate, str] | None, end: str | None
) -> str:
    lines = [f"# Written by lite-c2f export. The adapter acts on any quantisation of {name}."]
    if source == PLACEHOLDER:
        lines.append("# FROM: put the path of your GGUF file of that model here.")
    if scale != 1.0:
        lines.append(f"# Ollama has no scale: this is ratio 1. For {scale:g}, export with --ratio {scale:g}.")
    lines += [f"FROM {source}", f"ADAPTER ./{adapter}"]
    if found is None:
        lines.append(
            "# No TEMPLATE: the model's chat template has no known form here; Ollama takes the GGUF file's own."
        )
        stops: tuple[str, ...] = (end,) if end else ()
    else:
        template, system = found
        lines.append(f'TEMPLATE """{template.text}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
        stops = template.stops
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"


def _readme(adapter: str, name: str, scale: float, folded: bool) -> str:
    ratio = (
        "The ratio is in the file: use scale 1."
        if folded
        else "The scale is the ratio of the residue: 0 is the model as it is, 1 the whole residue"
        + (f"; the run chose {scale:g}." if scale != 1.0 else ".")
    )
    ollama = (
        ""
        if scale == 1.0
        else f" Ollama always adds an adapter at scale 1: for the run's ratio export again with `--ratio {scale:g}`."
    )
    return f"""# {adapter}: a LoRA adapter for llama.cpp

Written by `lite-c2f export`. It acts on any GGUF quantisation of {name}, and on no other model. {ratio}

## llama.cpp

```
llama-cli -m {PLACEHOLDER} --lora-scaled {adapter}:{scale:g}
llama-server -m {PLACEHOLDER} --lora-scaled {adapter}:{scale:g}
curl http://127.0.0.1:8080/lora-adapters -H "Content-Type: application/json" -d '[{{"id": 0, "scale": 0.5}}]'
```

The last command changes the scale of a running server. Older builds take `--lora-scaled {adapter} {scale:g}`.

## Ollama

Check the line `FROM` of `{MODELFILE}`, then `ollama create residue -f {MODELFILE}` and `ollama run residue`.{ollama}

## LM Studio and other programs that load one file

Make one file of both with a tool of llama.cpp, and load that:

```
llama-export-lora -m {PLACEHOLDER} --lora-scaled {adapter}:{scale:g} -o merged.gguf
```

Its weights have 16 bits; `llama-quantize merged.gguf small.gguf Q4_K_M` makes it small again.
"""
