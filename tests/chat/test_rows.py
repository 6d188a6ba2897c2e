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
def multi_model(roles, pico):
    instruct = load_model(str(pico["instruct"]), load_config({}, SETTINGS))
    return MultiModel([roles.model, instruct], residue_of(roles.model, "policy"))


def row(index, limit=20, seed=0, temperature=1.0, eos=(2,), **options):
    model, ratio = ACTORS[index % 4]
    return AnswerRow(
        model, ratio, PROMPTS[index % 4], Sampling(limit, temperature, 0, 1.0, seed), eos_ids=eos, **options
    )


def run(rows, *new):
    rows.start(new)
    while any(each.finish is None for each in new):
        rows.step()
    return [(each.tokens, each.finish) for each in new]


def alone(multi_model, index, **options):
    return run(AnswerRows(multi_model, 0), row(index, **options))[0]


def test_a_row_says_what_the_batched_sampler_says(multi_model, roles):
    """Seed 0 gives the sampler's first row the very same random numbers."""
    for index, role in ((0, "policy"), (2, "reference")):
        with roles.sampling(role):
            responses = sample(roles.model, [PROMPTS[index]], Sampling(20, 1.0, seed=0), eos_ids=[2], pad_id=0)
        assert alone(multi_model, index) == (responses.tokens[0], responses.finish[0])


@pytest.mark.parametrize("index", range(4))
def test_a_row_that_is_continued_says_what_one_long_row_says(multi_model, index):
    """Beside rows that are just begun or in the midst of theirs; in float32 no rounding is seen."""
    expected, _ = alone(multi_model, index, limit=20, seed=index, eos=())
    rows, neighbour = AnswerRows(multi_model, 0), row(3, limit=20, seed=9, eos=())
    rows.start([neighbour])
    rows.step()
    continued = row(index, limit=20, seed=index, eos=(), begun=expected[:7], drawn=7)
    assert run(rows, continued, row(1, limit=5))[0] == (expected, "limit")
    assert (continued.begun, continued.drawn) == (7, 20)
    assert neighbour.tokens == alone(multi_model, 3, limit=20, seed=9, eos=())[0][: len(neighbour.tokens)]


def test_tokens_that_were_drawn_count_and_no_random_number_is_used_twice(multi_model):
    """Nine tokens were drawn for a text of seven: eleven of 20 are left, with the random numbers from the tenth on."""
    continued = row(0, limit=20, eos=(), begun=[5] * 7, drawn=9)
    numbers, length = continued.uniforms[9:], continued.max_length
    assert length == 3 + 7 + 11  # of the prompt, begun, and still to come
    rows, used = AnswerRows(multi_model, 0), []
    draws = rows._draws

    def noted(those):
        made = draws(those)
        used.extend(made.uniforms.tolist())
        return made

    rows._draws = noted
    ((tokens, finish),) = run(rows, continued)
    assert (len(tokens), finish, used) == (18, "limit", numbers)


def test_rows_do_not_depend_on_who_comes_and_goes_beside_them(multi_model):
    expected = [alone(multi_model, index, limit=8 + 5 * index, seed=index) for index in range(8)]
    rows, made = AnswerRows(multi_model, 0), [row(index, limit=8 + 5 * index, seed=index) for index in range(8)]
    waiting = [made[:3], made[3:4], made[4:8]]  # the cache grows, rows change their slots
    while waiting or any(each.finish is None for each in made):
        if waiting:
            rows.start(waiting.pop(0))
        rows.step()
        rows.step()
    assert [(each.tokens, each.finish) for each in made] == expected
    rows.step()
    assert rows.rows == [] and rows.cache is None  # nothing is kept


def test_rows_are_sorted_by_model(multi_model):
    rows = AnswerRows(multi_model, 0)
    rows.start([row(1, eos=()), row(0, eos=())])
    rows.start([row(3, eos=()), row(2, eos=())])
    assert [each.model for each in rows.rows] == [0, 0, 1, 1]


def test_settings_of_neighbours_differ(multi_model):
    kinds = [{"temperature": 0.0}, {"temperature": 1.7}, {"temperature": 0.3}, {"temperature": 0.0}]
    expected = [alone(multi_model, index, **kind) for index, kind in enumerate(kinds)]
    assert run(AnswerRows(multi_model, 0), *(row(index, **kind) for index, kind in enumerate(kinds))) == expected


def test_how_a_row_ends(pico):
    stops = Stops(AutoTokenizer.from_pretrained(pico["base"]), [" w4 w5"])  # tokens 7 and 8

    def ended(*tokens, limit=5):
        each = AnswerRow(0, 0.0, [1], Sampling(limit), eos_ids=[2], stops=stops)
        for token in tokens:
            each.append(token, 1.0)
        return each.finish, each.text_tokens

    assert ended(5, 6) == (None, [5, 6])
    assert ended(5, 2) == ("eos", [5])
    assert ended(5, 7, 8) == ("stop", [5])
    assert ended(5, 5, 5, 7, 8) == ("stop", [5, 5, 5])  # at the limit as well
    assert ended(5, 7, 53) == ("stop", [5])  # w50: the text holds the stop
    assert ended(7, 5, 8) == (None, [7, 5, 8])
    assert ended(1, 1, 1, 1, 1) == ("limit", [1] * 5)
    assert ended(1, 1, 1, 1, 2) == ("eos", [1] * 4)
    each = AnswerRow(0, 0.0, [1], Sampling(5), eos_ids=[2], stops=stops, begun=[5, 7], drawn=2)
    each.append(8, 1.0)  # the stop text began before the continuation
    assert (each.finish, each.text_tokens) == ("stop", [5])


def test_a_penalty_is_that_of_transformers(multi_model):
    from transformers import RepetitionPenaltyLogitsProcessor

    from lite_c2f.sampling.draw import penalize

    logits = torch.tensor([1.5, -2.0, 0.0, 3.0, -0.5])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[3, 1, 1]]), logits[None].clone())[0]
    assert torch.allclose(penalize(logits, torch.tensor([1, 3]), 1.3), expected)
    tokens, _ = alone(multi_model, 0, temperature=0.0, eos=(), penalty=50.0)
    plain, _ = alone(multi_model, 0, temperature=0.0, eos=())
    assert len(set(tokens)) > len(set(plain))
    assert not set(tokens) & set(PROMPTS[0])  # tokens of the prompt count too


def test_a_model_that_fails_ends_its_own_rows_and_no_others(multi_model):
    expected = [alone(multi_model, index) for index in range(4)]
    rows, made = AnswerRows(multi_model, 0), [row(index) for index in range(4)]
    rows.start(made)
    rows.step()
    layer = next(
        module
        for module in multi_model.decoder.modules()
        if isinstance(module, PerModelLinear) and module.name in multi_model.residue
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


def test_the_cache_has_no_slots_for_rows_that_have_ended(multi_model):
    rows = AnswerRows(multi_model, 0)
    run(rows, *(row(index, limit=3) for index in range(4)))  # all have ended, none was left out yet
    rows.start([row(1)])
    assert rows._size[0] == 1


@pytest.mark.parametrize("where", ["grow", "arrange"])
def test_no_memory_for_new_rows(multi_model, where, monkeypatch):
    """Growing leaves those under way as they were; half arranged, none may go on with another's keys."""
    expected = [alone(multi_model, index, limit=30) for index in (1, 3)]
    rows, made = AnswerRows(multi_model, 0), [row(1, limit=30), row(3, limit=30)]
    rows.start(made)
    rows.step()
    layer = rows.cache.slot_layers[1]

    def full(*arguments):
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
    assert (late.tokens, late.finish) == alone(multi_model, 0, limit=30)
    if where == "grow":
        assert [(each.tokens, each.finish) for each in made] == expected


def test_a_row_that_cannot_tell_its_end_fails_alone(multi_model):
    class Broken:
        def follow(self, state, token):
            raise ValueError("no text")

    expected = [alone(multi_model, index, limit=6) for index in (0, 1, 3)]
    rows = AnswerRows(multi_model, 0)
    got = run(rows, row(0, limit=6), row(1, limit=6), row(2, limit=6, stops=Broken()), row(3, limit=6))
    assert [got[0], got[1], got[3]] == expected
    assert got[2][1] == "error" and len(got[2][0]) == 1


def test_numbers_that_are_not_finite_end_their_row_alone(multi_model):
    expected = alone(multi_model, 1)
    broken = row(3)
    broken.ratio = float("nan")
    whole = row(1)
    rows = AnswerRows(multi_model, 0)
    rows.start([broken, whole])
    while whole.finish is None:
        rows.step()
    assert broken.finish == "error" and "not finite" in broken.message
    assert (whole.tokens, whole.finish) == expected


def test_a_failed_row_leaves_nothing_in_its_slot(multi_model):
    expected = alone(multi_model, 0)
    broken, neighbour, later = row(1), row(2, limit=30), row(0)
    broken.model, broken.ratio = 0, float("nan")  # its prompt is longer than that of the slot's next row
    rows = AnswerRows(multi_model, 0)
    rows.start([neighbour, broken])
    assert broken.finish == "error" and neighbour.finish is None
    assert run(rows, later)[0] == expected
