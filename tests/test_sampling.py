"""Sampling against `generate` as the oracle, endings by hand, frequencies against the softmax."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.sampling import Sampling, draw, filter_logits, sample

PROMPTS = [[1, 5, 9], [1, 7], [1, 20, 21, 22, 23, 24], [1, 3]]


@pytest.fixture(scope="module")
def model(pico):
    return AutoModelForCausalLM.from_pretrained(pico["base"], dtype=torch.float32).eval()


def answer(model, sampling, prompts=PROMPTS, **given):
    return sample(model, prompts, sampling, **{"eos_ids": [2], "pad_id": 0, **given})


def oracle(model, prompt, limit, eos=2):
    tokens = torch.tensor([prompt])
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def test_greedy_is_generate_for_prompts_of_mixed_lengths(model):
    found = answer(model, Sampling(12, temperature=0))
    assert found.tokens == [oracle(model, prompt, 12) for prompt in PROMPTS]


def test_greedy_is_generate_when_rows_end_at_different_steps(model):
    """Tokens that some rows say early are made EOS, so that rows leave the batch one after another."""
    said = [oracle(model, prompt, 12) for prompt in PROMPTS]
    eos = said[0][3]
    found = answer(model, Sampling(12, temperature=0), eos_ids=[eos])
    assert found.tokens == [oracle(model, prompt, 12, eos) for prompt in PROMPTS]
    lengths = {len(tokens) for tokens in found.tokens}
    assert len(lengths) > 1 and min(lengths) < 12
    for tokens, finish, ending in zip(found.tokens, found.finish, found.ending, strict=True):
        assert (finish, ending) == (("eos", 1) if tokens[-1] == eos else ("limit", 0))


def test_a_stop_sequence_ends_the_response_and_is_cut_from_the_text(model):
    free = answer(model, Sampling(12, temperature=0), [PROMPTS[0]]).tokens[0]
    stop = free[4:6]
    found = answer(model, Sampling(12, temperature=0), [PROMPTS[0]], stop_ids=[stop])
    first = next(i for i in range(2, 13) if free[i - 2 : i] == stop)
    assert found.tokens[0] == free[:first] and found.finish == ["stop"] and found.ending == [2]
    assert found.text_tokens(0) == free[: first - 2]


def test_logprobs_are_those_of_the_model(model):
    found = answer(model, Sampling(6, temperature=0.8, seed=3))
    for prompt, tokens, logprobs in zip(PROMPTS, found.tokens, found.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.8).log_softmax(-1)[range(len(tokens)), tokens]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=2e-5, rtol=0)


def test_a_row_does_not_depend_on_its_neighbours(model):
    together = answer(model, Sampling(10, seed=5))
    again = answer(model, Sampling(10, seed=5))
    other = answer(model, Sampling(10, seed=6))
    assert together.tokens == again.tokens and together.tokens != other.tokens
    replaced = answer(model, Sampling(10, seed=5), [PROMPTS[0], [1, 60], [1, 61], PROMPTS[3]])
    assert replaced.tokens[0] == together.tokens[0] and replaced.tokens[3] == together.tokens[3]
    assert answer(model, Sampling(10, seed=5), batch=2).tokens == together.tokens


def test_frequencies_match_the_softmax():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    drawn, logprobs = draw(logits.expand(40_000, 4), uniforms, Sampling(1, temperature=0.5))
    expected = (logits[0] / 0.5).softmax(-1)
    found = torch.bincount(drawn, minlength=4) / 40_000
    assert (found - expected).abs().max() < 3 * (0.25 / 40_000) ** 0.5  # three standard errors at most
    torch.testing.assert_close(logprobs.exp(), expected[drawn], atol=1e-6, rtol=0)


def test_draw_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for uniform in (0.0, 0.4999, 0.5, 0.99999994):
        drawn, _ = draw(logits, torch.tensor([uniform]), Sampling(1))
        assert drawn.item() == (1 if uniform < 0.5 else 2)


def test_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert torch.isfinite(filter_logits(logits, 2, 1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.79)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.81)).tolist() == [[True, True, True, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.0)).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("sampling", "prompts", "words"),
    [
        (Sampling(0), PROMPTS, "limit 0"),
        (Sampling(-3), PROMPTS, "limit -3"),
        (Sampling(10), [[]], "empty prompt"),
        (Sampling(10), [], "empty prompt"),
        (Sampling(10), [[1] * 60], "context of 64"),
    ],
)
def test_bad_requests(model, sampling, prompts, words):
    with pytest.raises(ConfigError, match=words):
        answer(model, sampling, prompts)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_name_row_and_step(model, value):
    calls = []

    def breaks(module, given, logits):
        calls.append(1)
        if len(calls) == 3:
            logits[1] = value
        return logits

    handle = model.lm_head.register_forward_hook(breaks)
    try:
        with pytest.raises(ModelError, match="row 1 at step 2"):
            answer(model, Sampling(10))
    finally:
        handle.remove()
