"""Verdicts and grades in a judge's free text: the last one counts, and drafts in its thinking never do."""

import re
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

THOUGHT = re.compile(r"<(think|thinking)>.*?</\1>|\[THINK\].*?\[/THINK\]", re.IGNORECASE | re.DOTALL)
THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>|\[THINK\]", re.IGNORECASE)
THOUGHT_ENDS = re.compile(r"</think(?:ing)?>|\[/THINK\]", re.IGNORECASE)
DECORATION = re.compile(r"[*_`#\"“”]")
BOLD_LAST_LINE = re.compile(r"(?:^|\n)[ \t]*(\*\*|__)(A|B|C|tie|draw|[\d./]+)\1[.!]?\s*\Z", re.IGNORECASE)
LABELLED = r"\b(?:{names})\b\s*(?P<sep>[:：=]|[-–—]+|is\b|)\s*(?=(?P<content>[^\n]*))|\[\[(?P<bare>[^\]\n]+)\]\]"

WHO = r"(?:the )?(?:(?:assistant|answer|response|conversation|model|option) )?"
WINS = (
    r"(?: (?:is|was)(?: \w+)? (?:better|best|stronger|superior|preferred|winner)\b.*"
    r"| (?:wins|won|by|over|because|since|as)\b.*)?"
)
VERDICTS = (  # patterns of a whole clause in lower case; the first match counts
    (r"c|(?:it is |it's )?(?:an? |the )?(?:tie|tied|draw|drawn|equal|equally|same|both|neither)\b.*", "tie"),
    (rf"{WHO}a (?:and|=|equals) {WHO}b\b.*", "tie"),
    (rf"{WHO}[ab] is (?:tied|equal|as good as|the same)\b.*", "tie"),
    (rf"{WHO}a{WINS}", "A"),
    (rf"{WHO}b{WINS}", "B"),
)
PREFERS = re.compile(r"\b(?:but|yet|though|however|slightly|better|prefer\w*|wins?)\b", re.IGNORECASE)  # after a tie
# A number, optionally "out of" another one, not followed by a letter or the end of a range.
NUMBER = re.compile(
    r"[\[({\s]*(\d++(?:[.,]\d++)?+)(?:\s*(?:/|out of)\s*(\d++))?+(?!\w)(?!\s*(?:%|/|[-–]\s*\d|(?:to|or|and)\s+\d))"
)


def read_verdict(text: str) -> str | None:
    """ "A", "B" or "tie" from the last verdict in a judge's text; None if none can be read.

    >>> read_verdict("Both are right, A is shorter. VERDICT: A")
    'A'
    """
    return _last(text, "verdict", _verdict)


def read_grade(text: str) -> float | None:
    """The last grade in a judge's text, 1 to 10; None if none can be read.

    >>> read_grade("Clear and right. GRADE: 8/10")
    8.0
    """
    return _last(text, "grade|rating|score", _grade)


def without_thinking(text: str) -> str | None:
    """The text without thinking blocks (`<think> ... </think>`); None if one is not closed, as in a text cut off.

    A block that the chat template itself opened has only an end tag.
    """
    rest = THOUGHT_ENDS.split(THOUGHT.sub("", text))[-1]
    return None if THOUGHT_BEGINS.search(rest) else rest


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends within a thinking block, so that the answer begins in it."""
    return without_thinking(prompt) is None


def _last(text: str, names: str, read: Callable[[str], Value | None]) -> Value | None:
    """The last value after one of these names, in double brackets, or in bold alone on the last line.

    After a colon even an unreadable one counts: `VERDICT: cannot say` is no verdict, whatever came before.
    """
    rest = without_thinking(text)
    if rest is None:
        return None
    value = None
    rest = DECORATION.sub("", BOLD_LAST_LINE.sub(r"\n[[\2]]", rest))
    for match in re.finditer(LABELLED.format(names=names), rest, re.IGNORECASE):
        last = read(match["content"] if match["bare"] is None else match["bare"])
        if last is not None or match["sep"] in (":", "：", "="):
            value = last
    return value


def _verdict(content: str) -> str | None:
    clause = " ".join(re.split(r"[.;,:!?()\[\]{}—–]", content.lstrip("[({ "))[0].lower().split())
    if re.search(r"\b(?:not|no)\b|n't\b", clause):
        return None
    verdict = next((verdict for pattern, verdict in VERDICTS if re.fullmatch(pattern, clause)), None)
    return None if verdict == "tie" and PREFERS.search(content.partition(clause)[2] or content) else verdict


def _grade(content: str) -> float | None:
    match = NUMBER.match(content)
    if match is None or match[2] not in (None, "10"):
        return None
    grade = float(match[1].replace(",", "."))
    return grade if 1 <= grade <= 10 else None
