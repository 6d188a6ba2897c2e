"""The forms of preference data that are read, each with a row and what becomes of it, by hand.

`python tests/data/forms.py` writes the tables of docs/data.md from them; a test compares.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.data.records import Pair, Turn

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
WHY = (Turn("human", "Why?"),)
PAIR = Pair(WHY, "Because.", "No.")
KIND = PAIR._replace(turns=(Turn("human", "Be kind.\n\nWhy?"),))
LONG = PAIR._replace(turns=(Turn("human", "Hi"), Turn("assistant", "Hello"), Turn("human", "Why?")))
WITH_INPUT = PAIR._replace(turns=(Turn("human", "Why?\n\nThe sky is blue."),))

GOOD, BAD = {"role": "assistant", "content": "Because."}, {"role": "assistant", "content": "No."}
USER, SYSTEM = {"role": "user", "content": "Why?"}, {"role": "system", "content": "Be kind."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
GPT_GOOD, GPT_BAD = {"from": "gpt", "value": "Because."}, {"from": "gpt", "value": "No."}
TEXTS = {"chosen": "Because.", "rejected": "No."}
HH_HI, HH_WHY = "\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Why?\n\nAssistant:"


class Form(NamedTuple):
    name: str
    row: dict[str, Any]
    pair: Pair = PAIR
    columns: dict[str, Any] | None = None
    known: bool = False  # a data set whose columns the refusal recognises


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


FORMS = (
    Form("Texts", {"prompt": "Why?", **TEXTS}),
    Form("Any capitalisation", {"Prompt": "Why?", "CHOSEN": "Because.", "Rejected": "No."}),
    Form("`question`", {"question": "Why?", **TEXTS}),
    Form("`instruction`", {"instruction": "Why?", **TEXTS}),
    Form("Alpaca: `input` follows", {"instruction": "Why?", "input": "The sky is blue.", **TEXTS}, WITH_INPUT),
    Form("An `input` that the prompt holds already", {"prompt": "Why?", "input": "Why?", **TEXTS}),
    Form("`input` alone (distilabel)", {"system": "", "input": "Why?", **TEXTS}),
    Form("`system` or `system_prompt` comes first", {"system": "Be kind.", "question": "Why?", **TEXTS}, KIND),
    Form("`history`: pairs before", {"instruction": "Why?", "history": [["Hi", "Hello"]], **TEXTS}, LONG),
    Form("Prompt as messages", {"prompt": [SYSTEM, USER], **TEXTS}, KIND),
    Form("All as messages", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    Form("Answers as one message", {"prompt": "Why?", "chosen": GOOD, "rejected": BAD}),
    Form("LLaMA-Factory, ShareGPT", {
        "conversations": [{"from": "human", "value": "Why?"}], "chosen": GPT_GOOD, "rejected": GPT_BAD,
    }),
    Form("`model` or `bot` answers", {
        "prompt": "Why?",
        "chosen": [{"role": "model", "content": "Because."}], "rejected": [{"Role": "Bot", "Content": "No."}],
    }),
    Form("Text parts", {
        "prompt": [{"role": "user", "content": parts("Why?")}],
        "chosen": [{"role": "assistant", "content": [*parts("Beca"), *parts("use.")]}],
        "rejected": [{"role": "assistant", "content": parts("No.")}],
    }),
    Form("Whole conversations, no prompt", {"chosen": [*EARLIER, USER, GOOD], "rejected": [*EARLIER, USER, BAD]}, LONG),
    Form("Whole conversations, system text", {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, KIND),
    Form("UltraFeedback binarized: and a prompt", {
        "prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD],
    }),
    Form("A prompt that is the first of its turns", {
        "prompt": "Hi", "chosen": [*EARLIER, USER, GOOD], "rejected": [*EARLIER, USER, BAD],
    }, LONG),
    Form("A prompt that says more than they do", {
        "prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD],
    }, KIND),
    Form("Conversations that go on from the prompt", {
        "prompt": EARLIER, "chosen": [USER, GOOD], "rejected": [USER, BAD],
    }, LONG),
    Form("A system message with the answer", {
        "prompt": "Why?", "chosen": [SYSTEM, GOOD], "rejected": [SYSTEM, BAD],
    }, KIND),
    Form("HH transcripts", {"chosen": HH_HI + HH_WHY + " Because.", "rejected": HH_HI + HH_WHY + " No."}, LONG),
    Form("HH transcript as the prompt", {"prompt": HH_HI + HH_WHY, **TEXTS}, LONG),
    Form("HH transcripts and their prompt", {
        "prompt": HH_HI + HH_WHY, "chosen": HH_HI + HH_WHY + " Because.", "rejected": HH_HI + HH_WHY + " No.",
    }, LONG),
    Form("HH transcripts and an empty prompt", {
        "prompt": "", "chosen": HH_WHY + " Because.", "rejected": HH_WHY + " No.",
    }),
    Form("An answer that was cut off", {"prompt": "Why?", **TEXTS, "rejected_ended": False}, PAIR._replace(
        rejected_ended=False)),
)  # fmt: skip

BY_COLUMNS = (
    Form(
        "PKU-SafeRLHF (or `safer_response_id`)",
        {"prompt": "Why?", "response_0": "No.", "response_1": "Because.", "better_response_id": 1},
        columns={"prompt": "prompt", "answers": ["response_0", "response_1"], "best": "better_response_id"},
        known=True,
    ),
    Form(
        "SHP (1 means A, so B is named first)",
        {"history": "Why?", "human_ref_A": "Because.", "human_ref_B": "No.", "labels": 1, "score_A": 9, "score_B": 2},
        columns={"prompt": "history", "answers": ["human_ref_B", "human_ref_A"], "best": "labels"},
        known=True,
    ),
    Form(
        "SHP by its scores",
        {"history": "Why?", "human_ref_A": "Because.", "human_ref_B": "No.", "score_A": 9, "score_B": 2},
        columns={"prompt": "history", "answers": ["human_ref_A", "human_ref_B"], "score": ["score_A", "score_B"]},
    ),
    Form(
        "Nectar: the best over the worst",
        {
            "prompt": HH_WHY,
            "answers": [
                {"answer": "Maybe.", "rank": 2},
                {"answer": "Because.", "rank": 1},
                {"answer": "No.", "rank": 3},
            ],
            "turns": 1,
        },
        columns={"prompt": "prompt", "answers": "answers.answer", "rank": "answers.rank"},
        known=True,
    ),
    Form(
        "OpenAI's summaries",
        {"info": {"id": "t3", "post": "Why?"}, "summaries": [{"text": "No."}, {"text": "Because."}], "choice": 1},
        columns={"prompt": "info.post", "answers": "summaries.text", "best": "choice"},
        known=True,
    ),
    Form(
        "HelpSteer3",
        {"context": [USER], "response1": "Because.", "response2": "No.", "overall_preference": -2},
        columns={
            "prompt": "context",
            "answers": ["response1", "response2"],
            "best": "overall_preference",
            "values": [[-3, -2, -1], [1, 2, 3]],
        },
        known=True,
    ),
    Form(
        "HelpSteer2's preferences",
        {"prompt": "Why?", "response_1": "No.", "response_2": "Because.", "preference_strength": 3},
        columns={
            "prompt": "prompt",
            "answers": ["response_1", "response_2"],
            "best": "preference_strength",
            "values": [[-3, -2, -1], [1, 2, 3]],
        },
        known=True,
    ),
    Form(
        "UltraFeedback",
        {
            "instruction": "Why?",
            "completions": [
                {"response": "No.", "overall_score": 2.5},
                {"response": "Because.", "overall_score": 8.5},
            ],
        },
        columns={"prompt": "instruction", "answers": "completions.response", "score": "completions.overall_score"},
        known=True,
    ),
    Form(
        "Argilla's UltraFeedback",
        {"instruction": "Why?", "chosen_response": "Because.", "rejected_response": "No."},
        columns={"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
        known=True,
    ),
    Form(
        "OpenAI's fine-tuning files",
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        columns={"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"},
        known=True,
    ),
    Form(
        "Chatbot Arena",
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
        columns={"answers": ["conversation_a", "conversation_b"], "best": "winner", "values": ["model_a", "model_b"]},
        known=True,
    ),
    Form(
        "Other names",
        {"user_query": "Why?", "winning": "Because.", "losing": "No."},
        columns={"prompt": "user_query", "chosen": "winning", "rejected": "losing"},
        known=True,
    ),
    Form(
        "A prompt in several columns",
        {"task": "Why?", "text": "The sky is blue.", **TEXTS},
        WITH_INPUT,
        columns={"prompt": ["task", "text"]},
    ),
)

CALL = {"id": "c", "function": {"name": "f"}}
LEFT_OUT = (  # (row, reason)
    ({"prompt": "Why?", "chosen": "Because.", "rejected": None}, "empty answer"),
    ({"prompt": None, **TEXTS}, "empty prompt"),
    ({"prompt": "Why?", "chosen": "Yes", "rejected": "Yes "}, "sides equal"),
    ({"prompt": "Why?", "chosen": "Because.", "rejected": 7}, "'rejected' is a number"),
    ({"prompt": "Why?", "chosen": True, "rejected": "No."}, "'chosen' is true or false"),
    ({"prompt": ["Why?"], **TEXTS}, "'prompt' is a list of texts"),
    ({"prompt": "Why?", "input": 3, **TEXTS}, "'input' is a number"),
    ({"prompt": "Why?", "system": ["Be kind."], **TEXTS}, "'system' is a list of texts"),
    ({"prompt": "Why?", "history": "Hi", **TEXTS}, "'history' is text, not pairs of prompt and answer"),
    ({"prompt": "Why?", "chosen": "Because."}, "no 'rejected'"),
    (TEXTS, "a text without turns, and no prompt"),
    ({"prompt": "How?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "the prompt is not in the conversation"),
    ({"chosen": [USER, GOOD], "rejected": [*EARLIER, USER, BAD]}, "prompts differ"),
    ({"prompt": "Why?", "chosen": [USER], "rejected": [BAD]}, "no assistant turn"),
    ({"prompt": [USER, GOOD], **TEXTS}, "prompt ends with an answer"),
    ({"prompt": [{"role": "user", "content": None}], **TEXTS}, "'prompt' has a message without a text"),
    ({"prompt": [{"role": "user", "content": 5}], **TEXTS}, "'prompt' has a message whose text is a number"),
    ({"prompt": [{"content": "Why?"}], **TEXTS}, "'prompt' has a message without a role"),
    ({"prompt": [{"role": "tool", "content": "7"}], **TEXTS}, "role 'tool'"),
    ({"prompt": "Why?", "chosen": [GOOD | {"tool_calls": [CALL]}], "rejected": [BAD]}, "message with 'tool_calls'"),
    (
        {"prompt": "Why?", "chosen": [GOOD | {"reasoning_content": "Hm."}], "rejected": [BAD]},
        "message with 'reasoning_content'",
    ),
    (
        {"prompt": [{"role": "user", "content": [{"type": "image"}, *parts("Why?")]}], **TEXTS},
        "message with a part of type 'image'",
    ),
    ({"prompt": "Why?", **TEXTS, "images": ["a.png"]}, "has 'images'"),
    ({"prompt": "Why?", **TEXTS, "tools": '[{"name": "f"}]'}, "has 'tools'"),
    ({"prompt": "<|im_start|>user\nWhy?", **TEXTS}, "'prompt' is text with a chat template's markers"),
    (
        {"prompt": "[{'role': 'user', 'content': 'Wh", **TEXTS},
        "'prompt' looks like messages, but is neither JSON nor Python",
    ),
    ({"prompt": "Why?", **TEXTS, "chosen_ended": "maybe"}, "'chosen_ended' is text, not true or false"),
    ([1], "a row is a list of numbers"),
)


def tables() -> dict[str, str]:
    """{name of the table: its Markdown}, as docs/data.md has it."""

    def code(value: Any) -> str:
        return "`" + json.dumps(value, ensure_ascii=False).replace("|", "\\|") + "`"

    def read(pair: Pair) -> str:
        turns = " · ".join(f"{turn.role}: {turn.text}".replace("\n\n", " ¶ ") for turn in pair.turns)
        return turns + ("" if pair.rejected_ended else " (no end of answer is learnt from the rejected one)")

    lines = {
        "forms": ["| form | row | prompt that is read |", "|---|---|---|"]
        + [f"| {form.name} | {code(form.row)} | {read(form.pair)} |" for form in FORMS],
        "columns": ["| data | row | `columns` |", "|---|---|---|"]
        + [f"| {form.name} | {code(form.row)} | {code(form.columns)} |" for form in BY_COLUMNS],
        "left out": ["| row | reason |", "|---|---|"] + [f"| {code(row)} | {reason} |" for row, reason in LEFT_OUT],
    }
    return {name: "\n".join(rows) for name, rows in lines.items()}


def with_tables(page: str) -> str:
    """The page with its tables as they should be."""
    for name, table in tables().items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, there, rest = page.partition(begin)
        if not there:
            raise ValueError(f"{PAGE.name} has no line {begin!r}")
        page = f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
