"""Several actors answering the same question at once; no Gradio in it.

`panes.py` says who answers and how, `prompts.py` what a model reads and what is shown of what it says, `rows.py` is the
batch in which all answers of all visitors are written together, `loaded.py` the models of a run,
`stream.py` a question between the one who asks and the one who answers, `fair_queue.py` who is answered next,
`engine.py` the thread that answers.
"""

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.engine import Chat
from lite_c2f.chat.panes import ALL_PANES, PANES, TITLES, ChatSettings, Pane
from lite_c2f.chat.prompts import with_answers
from lite_c2f.chat.stream import AnswerStream

__all__ = ["ALL_PANES", "PANES", "TITLES", "AnswerStream", "Chat", "ChatSettings", "Pane", "Reply", "with_answers"]
