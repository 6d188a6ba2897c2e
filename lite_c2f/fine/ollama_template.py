"""Chat templates in Ollama's form: the known ones as Go templates, chosen by comparing what they and the model's give.

An Ollama template with .System, .Prompt and .Response renders one turn; for a conversation Ollama renders it turn by
turn, and cuts the last one at .Response (ollama/ollama, template/template.go). `render` does that here for the part of
Go's language that these templates use.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, str]  # role, content
USER = {"role": "user", "content": "How many  apples?"}
TALK = [USER, {"role": "assistant", "content": "Five."}, {"role": "user", "content": "And pears?"}]
SYSTEM = {"role": "system", "content": "Be brief."}
PART = re.compile(r"\{\{ (if \.\w+|\.\w+|end) \}\}")


class OllamaTemplate(NamedTuple):
    """A chat template of Ollama's."""

    name: str
    text: str  # without the token that begins a text, which llama.cpp adds
    stops: tuple[str, ...]
    has_system: bool = (
        True  # Transformers' template has a form for the system's turn; else ours puts it before the user's
    )


CHATML = OllamaTemplate(
    "ChatML",
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
    ("<|im_end|>", "<|im_start|>"),
)
LLAMA3 = OllamaTemplate(
    "Llama 3",
    "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>{{ end }}"
    "{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>{{ end }}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}<|eot_id|>",
    ("<|eot_id|>", "<|start_header_id|>"),
)
GEMMA = OllamaTemplate(
    "Gemma",
    "<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}<end_of_turn>\n"
    "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n",
    ("<end_of_turn>", "<start_of_turn>"),
    has_system=False,
)
PHI3 = OllamaTemplate(
    "Phi-3",
    "{{ if .System }}<|system|>\n{{ .System }}<|end|>\n{{ end }}"
    "{{ if .Prompt }}<|user|>\n{{ .Prompt }}<|end|>\n{{ end }}"
    "<|assistant|>\n{{ .Response }}<|end|>\n",
    ("<|end|>", "<|user|>"),
)
# Its releases differ in three spaces. The text within `if .Response` is left out where an answer is to be generated.
MISTRAL = tuple(
    OllamaTemplate(
        "Mistral",
        f"[INST] {{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{{{{ .Prompt }}}}{before}[/INST]"
        f"{{{{ if .Response }}}}{between}{{{{ .Response }}}}</s>{after}{{{{ end }}}}",
        ("</s>", "[INST]"),
        has_system=False,
    )
    for before in (" ", "")
    for between in ("", " ")
    for after in ("", " ")
)
TEMPLATES = (CHATML, LLAMA3, GEMMA, PHI3, *MISTRAL)


def render(text: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a conversation with one of these templates, up to where the answer begins."""
    rendered, values = "", {"System": "", "Prompt": "", "Response": ""}
    slots = {"system": "System", "user": "Prompt", "assistant": "Response"}
    for message in messages:
        slot = slots[message["role"]]
        if slot != "Response" and (values["Response"] or (slot == "System" and values["Prompt"])):
            rendered += _turn(text, values, cut=False)
            values = dict.fromkeys(values, "")
        values[slot] = message["content"]
    return rendered + _turn(text, values, cut=True)


def _turn(text: str, values: Mapping[str, str], cut: bool) -> str:
    """One turn; with `cut` nothing that comes after .Response."""
    written, shown = "", [True]
    for place, part in enumerate(PART.split(text)):
        if place % 2 == 0:
            written += part if all(shown) else ""
        elif part == "end":
            shown.pop()
        elif part.startswith("if "):
            shown.append(bool(values[part[4:]]))
        else:
            written += values[part[1:]] if all(shown) else ""
            if cut and part == ".Response":
                break
    return written


def find_template(tokenizer: Any, variables: Mapping[str, Any]) -> tuple[OllamaTemplate, str] | None:
    """(the template that renders what the tokenizer's does, the system text that it puts where there is none).

    None where none of them does, or the tokenizer has no template. variables: of the tokenizer's template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    for template in TEMPLATES:
        system = _default_system(template, tokenizer, variables)
        if system is None:
            continue
        before = [{"role": "system", "content": system}] if system else []
        conversations = [([*before, *TALK], TALK), ([SYSTEM, USER], [SYSTEM, USER])]
        if all(
            render(template.text, ours) in _of_tokenizer(tokenizer, theirs, variables)
            for ours, theirs in conversations[: 2 if template.has_system else 1]
        ):
            return template, system
    return None


def _default_system(template: OllamaTemplate, tokenizer: Any, variables: Mapping[str, Any]) -> str | None:
    """The system text that a tokenizer puts before a conversation without one; None where that has another form."""
    for own in _of_tokenizer(tokenizer, [USER], variables):
        if own == render(template.text, [USER]):
            return ""
        first, last = render(template.text, [SYSTEM, USER]).split(SYSTEM["content"])
        if template.has_system and own.startswith(first) and own.endswith(last) and len(own) > len(first + last):
            return own[len(first) : len(own) - len(last)]
    return None


def _of_tokenizer(tokenizer: Any, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[str]:
    """A conversation in the tokenizer's own template, with and without the token that begins a text; [] if it fails.

    llama.cpp adds that token itself, where the vocabulary says so. SmolLM2's is the one that begins a turn too.
    """
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))
    except Exception:  # whatever a template raises
        return []
    return [text, text.removeprefix(tokenizer.bos_token or "")]
