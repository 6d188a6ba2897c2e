"""The batch of answers: rows come, go and fail without their neighbours noticing."""

import pytest
import torch
from transformers import AutoTokenizer

from lite_c2f.backbone.load import load_model
from lite_c2f.backbone.multi_model import MultiModel, PerModelLinear, residue_of
from lite_c2f.chat.rows import AnswerRow, AnswerRows
from lite_c2f.config.loading import load_config
from lite_c2f.sampling import Sampling, Stops, sample

SETTINGS = ["data.max_prompt_tokens=16", "coarse.length.max=32", "coarse.length.start=8", "evaluation.max_tokens=32"]
PROMPTS = ([5, 9, 3], [7, 7, 21, 2, 33, 18, 44], [60], [12, 50, 6, 8])
ACTORS = ((0, 1.0), (1, 0.0), (0, 0.0), (1, 0.7))


@pytest.fixture
def roles(random_roles):
    return random_roles("policy", "critic")


@pytest.fixture
def together(roles, pico):
    instruct = load_model(str(pico["instruct"]), load_config({}, SETTINGS))
    return MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))


def row(index, limit=20, seed=0, temperature=1.0, eos=(2,), **given):
    model, share = ACTORS[index % 4]
    return AnswerRow(model, share, PROMPTS[index % 4], Sampling(limit, temperature, 0, 1.0, seed), eos_ids=eos, **given)


def run(rows, *given):
    rows.start(given)
    while any(each.finish is None for each in given):
        rows.step()
    return [(each.tokens, each.finish) for each in given]


def alone(together, index, **given):
    return run(AnswerRows(together, 0), row(index, **given))[0]


def test_a_row_says_what_the_batched_sampler_says(together, roles):
    """Seed 0 gives the sampler's first row the very same random numbers."""
    for index, role in ((0, "policy"), (2, "reference")):
        with roles.sampling(role):
            said = sample(roles.model, [PROMPTS[index]], Sampling(20, 1.0, seed=0), eos_ids=[2], pad_id=0)
        assert alone(together, index) == (said.tokens[0], said.finish[0])


def test_rows_do_not_depend_on_who_comes_and_goes_beside_them(together):
    expected = [alone(together, index, limit=8 + 5 * index, seed=index) for index in range(8)]
    rows, made = AnswerRows(together, 0), [row(index, limit=8 + 5 * index, seed=index) for index in range(8)]
    waiting = [made[:3], made[3:4], made[4:8]]  # the cache grows, rows change their slots
    while waiting or any(each.finish is None for each in made):
        if waiting:
            rows.start(waiting.pop(0))
        rows.step()
        rows.step()
    assert [(each.tokens, each.finish) for each in made] == expected
    rows.step()
    assert rows.rows == [] and rows.cache is None  # nothing is kept


def test_rows_are_sorted_by_model(together):
    rows = AnswerRows(together, 0)
    rows.start([row(1, eos=()), row(0, eos=())])
    rows.start([row(3, eos=()), row(2, eos=())])
    assert [each.model for each in rows.rows] == [0, 0, 1, 1]


def test_settings_of_neighbours_differ(together):
    kinds = [{"temperature": 0.0}, {"temperature": 1.7}, {"temperature": 0.3}, {"temperature": 0.0}]
    expected = [alone(together, index, **kind) for index, kind in enumerate(kinds)]
    assert run(AnswerRows(together, 0), *(row(index, **kind) for index, kind in enumerate(kinds))) == expected


def test_how_a_row_ends(pico):
    stops = Stops(AutoTokenizer.from_pretrained(pico["base"]), [" w4 w5"])  # tokens 7 and 8

    def ended(*tokens, limit=5):
        each = AnswerRow(0, 0.0, [1], Sampling(limit), eos_ids=[2], stops=stops)
        for token in tokens:
            each.take(token, 1.0)
        return each.finish, each.text_tokens

    assert ended(5, 6) == (None, [5, 6])
    assert ended(5, 2) == ("eos", [5])
    assert ended(5, 7, 8) == ("stop", [5])
    assert ended(5, 5, 5, 7, 8) == ("stop", [5, 5, 5])  # at the limit as well
    assert ended(5, 7, 53) == ("stop", [5])  # w50: the text holds the stop
    assert ended(7, 5, 8) == (None, [7, 5, 8])
    assert ended(1, 1, 1, 1, 1) == ("limit", [1] * 5)
    assert ended(1, 1, 1, 1, 2) == ("eos", [1] * 4)


def test_a_penalty_is_that_of_transformers(together):
    from transformers import RepetitionPenaltyLogitsProcessor

    from lite_c2f.sampling.draw import penalize

    logits = torch.tensor([1.5, -2.0, 0.0, 3.0, -0.5])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[3, 1, 1]]), logits[None].clone())[0]
    assert torch.allclose(penalize(logits, torch.tensor([1, 3]), 1.3), expected)
    said, _ = alone(together, 0, temperature=0.0, eos=(), penalty=50.0)
    plain, _ = alone(together, 0, temperature=0.0, eos=())
    assert len(set(said)) > len(set(plain))
    assert not set(said) & set(PROMPTS[0])  # tokens of the prompt count too


def test_a_model_that_fails_ends_its_own_rows_and_no_others(together):
    expected = [alone(together, index) for index in range(4)]
    rows, made = AnswerRows(together, 0), [row(index) for index in range(4)]
    rows.start(made)
    rows.step()
    layer = next(
        module for module in together.decoder.modules() if isinstance(module, PerModelLinear) and module.residue
    )
    whole = layer.layers[0]

    def broken(states):
        raise RuntimeError("the card\nhas gone")

    layer.layers[0] = broken
    rows.step()
    layer.layers[0] = whole
    assert [each.finish for each in made] == ["error", None, "error", None]
    assert made[0].message == "RuntimeError: the card has gone"
    while any(each.finish is None for each in made):
        rows.step()
    assert [(each.tokens, each.finish) for each in made[1::2]] == expected[1::2]


def test_the_cache_has_no_slots_for_rows_that_have_ended(together):
    rows = AnswerRows(together, 0)
    run(rows, *(row(index, limit=3) for index in range(4)))  # all have ended, none was left out yet
    rows.start([row(1)])
    assert rows._size[0] == 1


@pytest.mark.parametrize("where", ["grow", "arrange"])
def test_no_memory_for_new_rows(together, where, monkeypatch):
    """Growing leaves those under way as they were; half arranged, none may go on with another's keys."""
    expected = [alone(together, index, limit=30) for index in (1, 3)]
    rows, made = AnswerRows(together, 0), [row(1, limit=30), row(3, limit=30)]
    rows.start(made)
    rows.step()
    layer = rows.cache.slot_layers[1]

    def full(*given):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(layer, where, full)
        with pytest.raises(torch.OutOfMemoryError):
            rows.start([row(0), row(2)])  # of model 0: the others' slots move
    if where == "arrange":
        assert [each.finish for each in made] == ["error", "error"] and "no memory" in made[0].message
    rows.step()
    late = row(0, limit=30)
    rows.start([late])
    while any(each.finish is None for each in (*made, late)):
        rows.step()
    assert (late.tokens, late.finish) == alone(together, 0, limit=30)
    if where == "grow":
        assert [(each.tokens, each.finish) for each in made] == expected


def test_a_row_that_cannot_tell_its_end_fails_alone(together):
    class Broken:
        def follow(self, state, token):
            raise ValueError("no text")

    expected = [alone(together, index, limit=6) for index in (0, 1, 3)]
    rows = AnswerRows(together, 0)
    got = run(rows, row(0, limit=6), row(1, limit=6), row(2, limit=6, stops=Broken()), row(3, limit=6))
    assert [got[0], got[1], got[3]] == expected
    assert got[2][1] == "error" and len(got[2][0]) == 1


def test_numbers_that_are_not_finite_end_their_row_alone(together):
    expected = alone(together, 1)
    broken = row(3)
    broken.share = float("nan")
    whole = row(1)
    rows = AnswerRows(together, 0)
    rows.start([broken, whole])
    while whole.finish is None:
        rows.step()
    assert broken.finish == "error" and "not finite" in broken.message
    assert (whole.tokens, whole.finish) == expected
