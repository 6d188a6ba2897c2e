"""Replies of panes, made of their rows as far as they are generated."""

from collections.abc import Mapping
from threading import Lock

from lite_c2f.actors.answers import repeated_ngrams
from lite_c2f.actors.names import BASELINE
from lite_c2f.actors.reply import Reply
from lite_c2f.chat.loaded import LoadedActors
from lite_c2f.chat.panes import Pane
from lite_c2f.chat.prompts import settled
from lite_c2f.chat.remote_row import RemoteRow
from lite_c2f.chat.rows import AnswerRow
from lite_c2f.chat.stream import PendingQuestion

RAW_OVERLAP = 8  # tokens of a raw prompt decoded before its answer, whose first space a tokenizer would drop


def reply_of(
    actors: LoadedActors,
    tokenizer_lock: Lock,
    question: PendingQuestion,
    pane: Pane,
    row: AnswerRow | RemoteRow,
    empty: Reply,
) -> Reply | None:
    """A pane's reply from its row; None before another server has sent any text.

    tokenizer_lock: of `actors.caller_tokenizers`. empty: the reply with what is known before the first token.
    """
    if isinstance(row, RemoteRow):
        return _of_remote(actors, tokenizer_lock, question, row, empty)
    return _of_row(actors, tokenizer_lock, question, pane, row, empty)


def _of_row(
    actors: LoadedActors, tokenizer_lock: Lock, question: PendingQuestion, pane: Pane, row: AnswerRow, empty: Reply
) -> Reply:
    finish = row.finish  # read first: a finished row no longer changes
    tokens, text_tokens = row.tokens[row.begun :], list(row.text_tokens)  # `tokens`: those drawn now
    form, prompt, other = question.form, question.prompts[pane.key], question.folder_models.get(pane.key)
    stopping = form._replace(stop=() if finish else form.stop)
    stops = other.stop_texts(stopping) if other else actors.stop_texts(pane.actor, stopping)
    before, new = prompt.ids[-RAW_OVERLAP:] if form.raw else text_tokens[: row.begun], text_tokens[row.begun :]
    with tokenizer_lock:
        tokenizer = other.caller_tokenizer if other else actors.caller_tokenizers[pane.actor]
        decoded = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (before, before + new)]
    text = form.begun + decoded[1][len(decoded[0]) :]
    if finish not in ("eos", "stop"):
        text = settled(text, stops)
    seconds = row.last_token_at - row.first_token_at
    return empty._replace(
        text=text if form.raw else text.strip(),
        tokens=question.form.drawn + len(tokens),
        tokens_per_s=(len(tokens) - 1) / seconds if seconds > 0 else 0.0,
        finish=finish,
        message=row.message,
        first_token_s=row.first_token_at - question.submitted_at if tokens else None,
        reward=question.rewards.get(pane.key),
        repeated=repeated_ngrams(text_tokens) if finish else 0.0,
        dropped=prompt.dropped,
        cut=prompt.cut,
    )


def _of_remote(
    actors: LoadedActors, tokenizer_lock: Lock, question: PendingQuestion, row: RemoteRow, empty: Reply
) -> Reply | None:
    """Tokens are those of this run's instruct model, so that lengths compare; EOS counts there too."""
    finish, text = row.finish, row.text
    if not (finish or text):
        return None
    with tokenizer_lock:
        ids = actors.text_ids(actors.caller_tokenizers[BASELINE], text)
    tokens, seconds = len(ids) + (finish == "eos"), row.last_token_at - row.first_token_at
    return empty._replace(
        text=text,
        tokens=tokens,
        tokens_per_s=(tokens - 1) / seconds if seconds > 0 else 0.0,
        finish=finish,
        message=row.message,
        first_token_s=row.first_token_at - question.submitted_at if row.first_token_at else None,
        reward=question.rewards.get(empty.pane),
        repeated=repeated_ngrams(ids) if finish else 0.0,
    )


def other_texts(question: PendingQuestion, rows: Mapping[str, AnswerRow | RemoteRow]) -> dict[str, str]:
    """The texts, by pane, of finished answers that no model of the run has generated; for the answering thread."""
    result = dict[str, str]()
    for key, row in rows.items():
        if isinstance(row, RemoteRow):
            result[key] = row.text
        elif key in question.folder_models:
            result[key] = question.folder_models[key].text_of(row)
    return result
