"""What ends a response in PPO."""

from types import SimpleNamespace

import pytest
from tokenizer_kinds import made

from lite_c2f.backbone.padding import padding_id
from lite_c2f.coarse.train import response_ends
from lite_c2f.config.loading import load_config


@pytest.mark.parametrize(("form", "end", "others"), [("chat", 2, (0, 7)), ("Q: {prompt} A:", 0, (7,))])
def test_ends_are_those_of_the_form_that_is_trained(form, end, others):
    """Qwen's kind: EOS is 0, a chat's turn ends with 2; the model lists 7 as well."""
    config = load_config({}, [f"model.prompt_template='{form}'", "model.stop=['Q:']"])
    tokenizer = made("qwen")
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[0, 7]))
    ends = response_ends(config, tokenizer, model)
    assert (ends.eos_id, ends.other_eos_ids) == (end, others)
    assert sorted(ends.eos_ids) == sorted([end, *others])
    assert ends.stops.texts == ("Q:",) and ends.pad_id == padding_id(tokenizer) not in ends.eos_ids
