"""Questions of a request: for each choice its pane, conversation and settings, checked before it is queued."""

import secrets
from typing import NamedTuple

from lite_c2f.chat.engine import Chat
from lite_c2f.chat.panes import MAX_TEXT_CHARACTERS, MIN_PROMPT_TOKENS, AnswerForm, ChatSettings, Pane
from lite_c2f.chat.server.errors import ApiError, too_long
from lite_c2f.chat.server.models import pane_named
from lite_c2f.chat.server.requests import MAX_CHOICES, ChatBody, CommonBody, CompletionBody
from lite_c2f.data.records import Turn
from lite_c2f.errors import C2FError

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own default for /v1/completions
MIN_TEMPERATURE = 0.01  # the engine's lowest but 0; what programs mean by 1e-5 is the most likely token
MIN_TOP_P = 1e-9  # 0 keeps the most likely token alone, as this does


class Asked(NamedTuple):
    """One choice of a request, ready for `Chat.stream`."""

    pane: Pane
    turns: list[Turn]
    settings: ChatSettings
    form: AnswerForm
    prompt_tokens: int
    counted: bool  # its prompt counts in the request's usage; further choices share it


def chat_questions(chat: Chat, body: ChatBody) -> list[Asked]:
    """The questions of /v1/chat/completions. Raises ApiError for what cannot be answered."""
    turns, system = body.conversation()
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "'top_logprobs' without logprobs; expected logprobs: true; add it", "top_logprobs")
    if len(system) > MAX_TEXT_CHARACTERS or len(turns[-1].text) > MAX_TEXT_CHARACTERS:
        got = f"a message of more than {MAX_TEXT_CHARACTERS} characters"
        raise ApiError(400, f"{got}; expected a shorter one; shorten it", "messages", "context_length_exceeded")
    form = AnswerForm(body.stops, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _asked(chat, body, [turns], form, system, None if limit == -1 else limit, "messages")


def completion_questions(chat: Chat, body: CompletionBody) -> list[Asked]:
    """The questions of /v1/completions. Raises ApiError for what cannot be answered."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts or not all(0 < len(prompt) <= MAX_TEXT_CHARACTERS for prompt in prompts):
        got = f"an empty 'prompt', or one of more than {MAX_TEXT_CHARACTERS} characters"
        raise ApiError(400, f"{got}; expected a text; correct it", "prompt")
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise ApiError(
            400, f"{len(prompts)} prompts, n={body.n or 1}; expected {MAX_CHOICES} answers at most", "prompt"
        )
    form = AnswerForm(body.stops, raw=True, logprobs=body.logprobs)
    conversations = [[Turn("human", prompt)] for prompt in prompts]
    limit = None if body.max_tokens == -1 else body.max_tokens or DEFAULT_COMPLETION_TOKENS
    return _asked(chat, body, conversations, form, "", limit, "prompt")


def _asked(
    chat: Chat,
    body: CommonBody,
    conversations: list[list[Turn]],
    form: AnswerForm,
    system: str,
    limit: int | None,
    param: str,
) -> list[Asked]:
    """limit: of the answer, in tokens; None: what the context leaves. param: the prompt's parameter."""
    settings = ChatSettings(
        temperature=1.0
        if body.temperature is None
        else max(body.temperature, MIN_TEMPERATURE * (body.temperature > 0)),
        top_p=1.0 if body.top_p is None else max(body.top_p, MIN_TOP_P),
        top_k=max(body.top_k or 0, 0),
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        system=system,
    )
    seed = secrets.randbelow(1 << 31) if body.seed is None else body.seed
    result: list[Asked] = []
    for turns in conversations:
        pane = pane_named(body.model, "")
        prompt_tokens = _prompt_tokens(chat, pane, turns, settings, form, limit or 1, param)
        room = min(chat.context - prompt_tokens, chat.context - MIN_PROMPT_TOKENS)
        for choice in range(body.n or 1):
            number = len(result)
            mine = settings._replace(max_tokens=limit or room, seed=(seed + number) % (1 << 63))
            try:
                chat.check(mine)
            except C2FError as error:
                raise ApiError(400, str(error), str(error).partition("=")[0], "invalid_value") from None
            result.append(Asked(pane._replace(key=str(number)), turns, mine, form, prompt_tokens, choice == 0))
    return result


def _prompt_tokens(
    chat: Chat, pane: Pane, turns: list[Turn], settings: ChatSettings, form: AnswerForm, limit: int, param: str
) -> int:
    """Tokens of a prompt. Raises ApiError where it and an answer of `limit` tokens do not fit."""
    if not turns[-1].text.strip():
        raise ApiError(400, f"an empty prompt; expected a text in the last of '{param}'; write one", param)
    try:
        prompt = chat.encoded(turns, pane, settings, raw=form.raw, limit=1 << 30)
    except C2FError as error:
        raise ApiError(400, str(error), param) from None
    most = chat.actors.max_prompt_tokens(limit)
    if len(prompt.ids) > most:
        raise too_long(chat.context, most, len(prompt.ids), limit, param)
    return len(prompt.ids)
