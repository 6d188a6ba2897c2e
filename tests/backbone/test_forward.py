"""The argument that a decoder takes its cache by, in releases before and after its renaming."""

import functools

import torch
from transformers import MistralModel

from lite_c2f.backbone.forward import cache_argument, hidden_states


class Output:
    last_hidden_state = "states"


class Before:
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        raise AssertionError("hooks wrap the instance's")

    def __call__(self, **options):
        self.options = options
        return Output


def renamed(forward):
    @functools.wraps(forward)
    def wrapper(self, **options):
        raise AssertionError("not called here")

    return wrapper


class After(Before):
    @renamed
    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        pass


def test_the_cache_goes_by_the_name_of_the_release():
    tokens, positions = torch.ones(1, 2), torch.zeros(1, 2)
    for decoder, name in ((Before(), "past_key_values"), (After(), "cache")):
        assert hidden_states(decoder, tokens, "the cache", mask=None, positions=positions) == "states"
        named = {"input_ids": tokens, "attention_mask": None, "position_ids": positions, "use_cache": True}
        assert decoder.options == named | {name: "the cache"}


def test_transformers_own_decoders_have_one_of_the_names():
    assert cache_argument(MistralModel.forward) in ("cache", "past_key_values")
