"""Continuation of an answer that was cut off: the same answer grows, in its pane and in its variant of the round."""

from collections.abc import Iterator, Mapping

from lite_c2f.chat import ChatSettings
from lite_c2f.chat.panes import MIN_PROMPT_TOKENS, AnswerForm
from lite_c2f.chat.server_names import server_model_in
from lite_c2f.ui.answering import Notice, Served
from lite_c2f.ui.page_session import PageSession
from lite_c2f.ui.round_stream import BegunRound, ShownRounds, stream_round, with_replies
from lite_c2f.ui.rounds import refuse_while_edited, split_last
from lite_c2f.ui.store.conversations import Reply, Round
from lite_c2f.ui.store.variants import CUT_OFF, settings_of_pane


def continue_answer(served: Served, page: PageSession, pane: str, more: int) -> Iterator[ShownRounds | None]:
    """Let a pane's last answer go on for at most `more` tokens, under its own settings and seed.

    It is what one long answer would have been, with the random numbers that follow those used, as far as its text,
    encoded again, has the tokens that were drawn; bit by bit it is not, since those are then read in one pass
    (`LoadedActors.row`). Its tokens and times add up. Where nothing comes of it, the answer stays as it was.
    """
    failures = list[str]()

    def begin() -> BegunRound:
        refuse_while_edited(page)
        transcript, last = split_last(page)
        before = last.replies.get(pane)
        if before is None or before.finish not in CUT_OFF:
            raise Notice("This answer has ended: there is nothing to continue")
        if server_model_in(pane):
            raise Notice("Another server's answer cannot be continued: ask again with more Max new tokens")
        most = min(before.tokens + more, served.chat.context - MIN_PROMPT_TOKENS)
        if most <= before.tokens:
            raise Notice("The model's context has no room for more of this answer")
        own = ChatSettings(**settings_of_pane(last, pane))
        settings = own._replace(
            max_tokens=most, seed=before.seed, ratio=own.ratio if before.ratio is None else before.ratio
        )
        growing = last._replace(pane_settings={**last.pane_settings, pane: settings._asdict()})

        def grow(round_: Round, new: Mapping[str, Reply]) -> Round:
            if pane not in new:
                return round_
            failures[:] = [new[pane].message] if new[pane].finish == "error" else []
            reply = continued(before, new[pane])
            return last if reply is None else with_replies(growing, {pane: reply})

        round_ = with_replies(growing, {pane: before._replace(finish=None, reward=None)})
        form = AnswerForm(begun=before.text, drawn=before.tokens)
        return BegunRound(transcript, last, round_, settings, form, grow)

    yield from stream_round(served, page, begin, [pane])
    for message in failures:
        raise Notice(f"The answer could not be continued: {message}")


def continued(before: Reply, reply: Reply) -> Reply | None:
    """An answer with its continuation; None where that has ended without a token.

    reply: to the continuation, with the whole text and all tokens, and the time and speed of the continuation alone.
    An error leaves what was written before it, as if it had been stopped.
    """
    new = reply.tokens - before.tokens
    if reply.finish and new <= 0:
        return None
    if reply.finish == "error":
        reply = reply._replace(finish="stopped", message="")
    waits = [seconds for seconds in (before.first_token_s, reply.first_token_s) if seconds is not None]
    seconds = _writing_s(before.tokens, before.tokens_per_s) + _writing_s(new, reply.tokens_per_s)
    return reply._replace(
        first_token_s=sum(waits) if waits else None,  # so that the times of both parts add up in the table of figures
        tokens_per_s=(reply.tokens - 1) / seconds if seconds else 0.0,
    )


def _writing_s(tokens: int, tokens_per_s: float) -> float:
    """Seconds from the first of some tokens to the last."""
    return max(tokens - 1, 0) / tokens_per_s if tokens_per_s else 0.0
