"""Sampling of responses with continuous batching, each up to a limit, ended by EOS or a stop sequence.

A fixed number of slots has preallocated keys and values; when a response ends, its slot takes the next prompt.
`draw.py` draws a token, `stops.py` finds the end of a stop text, `cache.py` holds keys and values, `slots.py` is one
step of all slots, `schedule.py` assigns prompts to slots, `trial.py` tries a model's class. Tested against `generate`
of Transformers.
"""

from lite_c2f.sampling.draw import Sampling, draw, filter_logits
from lite_c2f.sampling.schedule import Responses, sample
from lite_c2f.sampling.stops import Stops

__all__ = ["Responses", "Sampling", "Stops", "draw", "filter_logits", "sample"]
