"""Chat with several actors, which answer the same question at once. Imports no Gradio.

`panes.py`: actors and settings; `history.py`: conversations; `other_actors.py`, `offers.py` and `other_residues.py`:
actors of other updates and runs; `folder_models.py` and `folder_model.py`: models of a folder; `remote_servers.py`,
`remote_row.py` and `remote_stream.py`: those of other servers; `prompts.py`: prompts and the text shown; `loaded.py`:
the models of a run; `rows.py`: the batch in which all answers of all clients are generated; `batches.py`: that of the
run and of a folder's model; `stream.py`: one question and its stream of replies, which `replies.py` makes;
`questions.py` and `fair_queue.py`: waiting questions and their order; `answering.py`: the thread that answers;
`engine.py`: `Chat`; `server/`: an HTTP server of it, with OpenAI's interface.

Torch is imported by what answers with a model, and that is imported when `Chat` loads its models.
"""

from lite_c2f.actors.reply import Reply
from lite_c2f.chat.engine import Chat
from lite_c2f.chat.history import with_answers
from lite_c2f.chat.panes import ALL_PANES, PANES, TITLES, ChatSettings, Pane
from lite_c2f.chat.stream import AnswerStream

__all__ = ["ALL_PANES", "PANES", "TITLES", "AnswerStream", "Chat", "ChatSettings", "Pane", "Reply", "with_answers"]
