"""Sampling: responses to many prompts at once, a few at a time, each under a limit, ended by EOS or a stop sequence.

A fixed number of slots with preallocated keys and values; a row that ends makes room for the next prompt at once.
`draw.py` picks a token, `stops.py` finds where a stop text ends, `cache.py` holds keys and values, `slots.py` is one
step of all slots, `schedule.py` assigns prompts to slots. Tested against `generate` of Transformers.
"""

from lite_c2f.sampling.draw import Sampling, draw, filter_logits
from lite_c2f.sampling.schedule import Responses, sample
from lite_c2f.sampling.stops import Stops

__all__ = ["Responses", "Sampling", "Stops", "draw", "filter_logits", "sample"]
