"""Server of a run's actors with OpenAI's HTTP interface: `/v1/models`, `/v1/chat/completions`, `/v1/completions`.

`api.py`: routes; `gate.py`: which requests are let in; `requests.py`: their bodies; `models.py`: names of models;
`questions.py`: from a request to questions for `Chat`; `answering.py`: their replies, as they grow; `bodies.py`: the
JSON that is sent; `errors.py`: its errors; `serve.py`: the process.
"""

from lite_c2f.chat.server.api import build
from lite_c2f.chat.server.serve import serve

__all__ = ["build", "serve"]
