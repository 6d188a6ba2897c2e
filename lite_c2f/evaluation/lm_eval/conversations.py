"""Conversations of lm-evaluation-harness as turns, and prompt templates as chat templates."""

import json
from collections.abc import Mapping, Sequence

from lite_c2f.data.records import Turn


def as_turns(messages: Sequence[Mapping[str, str]]) -> list[Turn]:
    """lm-eval's messages as turns; a task's description, which is a system message, precedes the first question.

    >>> as_turns([{"role": "system", "content": "Be brief.\\n"}, {"role": "user", "content": "Hi"}])[0].text
    'Be brief.\\n\\nHi'
    """
    system = "".join(message["content"] for message in messages if message["role"] == "system").strip()
    roles = {"user": "human", "assistant": "assistant"}
    first, *others = [
        Turn(roles[message["role"]], message["content"]) for message in messages if message["role"] in roles
    ]
    return [first._replace(text=f"{system}\n\n{first.text}" if system else first.text), *others]


def as_jinja(template: str) -> str:
    """A base model's prompt template as a chat template. Without BOS, which is an id before the text.

    >>> as_jinja("Q: {prompt} A:")[:57]
    "{% for turn in messages %}{% if turn.role == 'user' %}{{ "
    """
    head, tail = (json.dumps(part) for part in template.split("{prompt}"))
    turns = f"{{% if turn.role == 'user' %}}{{{{ {head} + turn.content + {tail} }}}}"
    turns += "{% else %}{{ ' ' + turn.content }}{% endif %}"
    return "{% for turn in messages %}" + turns + "{% endfor %}"
