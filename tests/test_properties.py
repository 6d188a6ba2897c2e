"""What must hold for any input: settings, masks, the length controller, advantages, shards, checkpoints and lines."""

import contextlib
import copy
import hashlib
import json
import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import xxhash
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lite_c2f.coarse import rollout
from lite_c2f.coarse.advantage import gae, token_rewards
from lite_c2f.coarse.length import LengthState, RunningStats, advance, start
from lite_c2f.coarse.rollout import (
    ResponseEnds,
    RolloutBatches,
    RolloutContext,
    RolloutRequest,
    collect,
    micro_batches,
)
from lite_c2f.config.loading import load_config, schema
from lite_c2f.config.settings import Coarse, Config, Length
from lite_c2f.data.encode import encode_answer, encode_chat, encode_prompt
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError
from lite_c2f.fine import shards, stream
from lite_c2f.fine.merge import merge
from lite_c2f.reward import sources
from lite_c2f.reward.files import Normalizer
from lite_c2f.runtime.batch_size import ENOUGH_TOKENS, BatchSize
from lite_c2f.sampling import Responses
from lite_c2f.storage.checkpoints import HASHES, STATE, TENSORS, Checkpoint, CheckpointStore
from lite_c2f.storage.files import append_line, filter_lines, read_lines, write_jsonl
from lite_c2f.toy.build import CHAT_TEMPLATE, make_tokenizer


def examples(count):
    """The same examples in every run; some are slow to draw, and the fixtures used here hold nothing."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count, deadline=None, derandomize=True, report_multiple_bugs=False, suppress_health_check=slow
    )


# -- settings: drawn from the schema that is published, so that a new field is covered on the day it is made

SCHEMA = schema()
SECTIONS = list(SCHEMA["properties"])
TEXT = st.text() | st.sampled_from(["0", "1e5", "inf", "null", "yes", "[a", "\u2028", "a: b"])
CELL = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
PLACES = {  # where the schema does not say all
    "base": TEXT.map("base {}".format),  # `toy` goes with `toy` alone
    "instruct": TEXT.map("instruct {}".format),
    "prompt_template": TEXT.map(lambda text: text.replace("{prompt}", "") + "{prompt}"),
    "stop": st.lists(st.text(min_size=1), max_size=2),
    "chat_template_kwargs": st.dictionaries(
        TEXT.filter(lambda key: not {".", "="} & {*key}), st.none() | st.booleans() | TEXT | st.lists(TEXT), max_size=2
    ),
    "target_modules": st.just("all-linear") | st.lists(st.sampled_from(["q_proj", "up_proj"]), min_size=1),
    "columns": st.none()
    | st.fixed_dictionaries({}, optional={"prompt": TEXT | st.lists(TEXT, max_size=2), "system": TEXT, "chosen": TEXT})
    | st.fixed_dictionaries({"answers": TEXT, "best": TEXT, "values": st.lists(CELL, min_size=2, max_size=2)}),
    "rewards": st.lists(
        st.fixed_dictionaries(
            {"function": st.sampled_from(["a.py:f", "b.c:g"]), "name": st.sampled_from(["x", "y-1"])},
            optional={
                "weight": st.floats(0.1, 9),
                "scale": st.sampled_from(["auto", "running", "none"]),
                "arguments": st.dictionaries(TEXT, CELL, max_size=2),
                "timeout": st.floats(0.1, 9),
            },
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda source: source["name"],
    ),
    "watch": st.lists(st.just({"model": "trained"}), max_size=1),
    "best_by": st.sampled_from(["reward", "mean_tokens"]),
    "evaluate_temperature": st.just(0) | st.floats(1e-3, 9),
    "ratio": st.just("auto") | st.floats(1e-9, 1e9),
    "ratios": st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=3),
}


def values_of(part):
    """JSON values that fit a part of the schema; of an object's optional keys, any."""
    if "$ref" in part:
        return values_of(SCHEMA["$defs"][part["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in part:
        return st.one_of(*map(values_of, part["anyOf"]))
    if "enum" in part or "const" in part:
        return st.sampled_from(part.get("enum") or [part["const"]])
    if part["type"] == "object":
        found = {name: PLACES[name] if name in PLACES else values_of(p) for name, p in part["properties"].items()}
        needed = {name: found.pop(name) for name in [*part.get("required", ()), *(PAIRED & found.keys())]}
        return st.fixed_dictionaries(needed, optional=found)
    if part["type"] == "array":
        return st.lists(values_of(part["items"]), min_size=part.get("minItems", 0), max_size=2)
    if part["type"] == "integer":
        return st.integers(part["minimum"], part.get("maximum", 10**6))
    if part["type"] == "number":
        low, high = (part.get(key, part.get(f"exclusive{key.title()}")) for key in ("minimum", "maximum"))
        strict = {"exclude_min": "exclusiveMinimum" in part, "exclude_max": "exclusiveMaximum" in part}
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **strict)
    text = TEXT.filter(lambda text: len(text) >= part.get("minLength", 0))
    return {"boolean": st.booleans(), "null": st.none(), "string": text}[part["type"]]


LISTED = ("data.preferences", "data.prompts", "coarse.rewards", "coarse.watch")
# Keys whose values have to fit each other: drawn always, and made to fit.
PAIRED = {"base", "instruct", "start", "max", "multiple", "step"}
PAIRED |= {"updates", "rollouts", "critic_warmup", "minibatches", "kl_coef"}


def fitting(values):
    """Drawn values, changed where two of them would contradict each other."""
    if coarse := values.get("coarse"):
        coarse["updates"] += coarse["critic_warmup"]
        coarse["rollouts"] *= coarse["minibatches"]
        coarse["kl_coef"] += 1e-3
        if coarse.get("algorithm") == "dpo":  # has no rewards
            coarse.pop("rewards", None)
        if coarse.get("evaluate_every") is None or coarse.get("algorithm") == "dpo":
            for key in ("watch", "best_by", "patience"):
                coarse.pop(key, None)
        if coarse.get("watch") and "rewards" not in coarse:
            coarse["watch"] = []  # the trained reward model is among the rewards
        if length := coarse.get("length"):
            length["max"] += length["start"]
            length["step"] += length["multiple"]
    if not values.get("data", {}).get("preferences", True):
        del values["data"]["preferences"]  # a reward model needs pairs
    for key in ("preferences", "prompts"):
        for source in values.get("data", {}).get(key, ()):
            source.pop("rewards", None)  # names of coarse.rewards
    return values


configs = values_of(SCHEMA).map(fitting)
paths = st.sampled_from([(), *((name,) for name in SECTIONS), ("coarse", "length")])


def leaves(values, prefix=""):
    """(dotted key, value) of everything that is no section."""
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


@examples(30)
@given(values=configs)
def test_any_config_comes_back_from_its_yaml(tmp_path_factory, values):
    config = load_config(values)
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(file) == config
    dumped = dict(leaves(config.model_dump(mode="json")))
    for key, value in leaves(values):
        if key not in LISTED:  # there a source's other keys are filled in
            assert dumped[key] == value


@examples(30)
@given(values=configs, chooser=st.randoms(use_true_random=False))
def test_overrides_say_what_a_mapping_says(values, chooser):
    whole, overrides = copy.deepcopy(values), []
    for key, value in leaves(whole):
        if chooser.random() < 0.5:
            *parents, last = key.split(".")
            node = values
            for parent in parents:
                node = node[parent]
            del node[last]
            overrides.append(f"{key}={yaml.safe_dump(value, default_flow_style=True, width=math.inf)}")
    rest = copy.deepcopy(values)
    assert load_config(values, overrides) == load_config(whole)
    assert values == rest, "the caller's mapping was changed"


@examples(30)
@given(values=configs, batches=st.tuples(*[st.integers(1, 99) | st.just("auto")] * 3))
def test_identity_is_all_but_the_batch_sizes_and_the_places_of_models(values, batches):
    places = ("model.base", "model.instruct", "model.base_revision", "model.instruct_revision")
    sizes = ("coarse.micro_batch", "coarse.sampling_batch", "reward.micro_batch")
    config = load_config(values)
    other = load_config(values, [f"{key}={value}" for key, value in zip(sizes, batches, strict=True)])
    assert other.identity(SECTIONS) == config.identity(SECTIONS)
    found = {name: value for name, value in config.identity(SECTIONS).items() if name != "run"}
    whole = dict(leaves(config.model_dump(mode="json", exclude={"run"})))
    for key in ("data.preferences", "data.prompts"):  # runs of earlier versions have no `columns`
        absent = (("columns", None), ("rewards", None))
        whole[key] = [{k: v for k, v in source.items() if (k, v) not in absent} for source in whole[key]]
        for source in whole[key]:  # a local file counts by its name
            source["path"] = source["path"].split("/")[-1] if source["path"][0] == "/" else source["path"]
    if (use := whole.pop("coarse.use")) != "last":  # says which policy is merged
        whole["fine.coarse_use"] = use
    for key in ("coarse.rewards", "coarse.watch"):
        kept = [{k: v for k, v in source.items() if k not in ("timeout", "workers")} for source in whole[key]]
        whole[key] = [dict(leaves(source)) for source in kept]
        found["coarse"] |= {key[7:]: [dict(leaves(source)) for source in found["coarse"].get(key[7:], [])]}
    if config.coarse.usual_rewards:  # runs of earlier versions know no others
        whole["coarse.rewards"] = []
    if config.coarse.algorithm == "dpo":
        del found["coarse"]["rewards"], found["coarse"]["watch"]
    own = ("coarse.algorithm", "coarse.dpo.")  # of DPO, which reads nothing else but the clipping of gradients
    if config.coarse.algorithm == "ppo":  # runs of earlier versions know no DPO
        whole = {key: value for key, value in whole.items() if not key.startswith(own)}
    else:
        of_ppo = (key for key in whole if key.startswith("coarse.") and not key.startswith(own))
        sizes = (*sizes, "coarse.dpo.micro_batch", *(key for key in of_ppo if key != "coarse.max_grad_norm"))
    assert dict(leaves(found)) == {key: value for key, value in whole.items() if key not in (*sizes, *places)}
    assert config.identity(["lora"]) == {"lora": found["lora"], "run": {"seed": config.run.seed}}


@examples(60)
@given(path=paths, key=st.text(st.characters(categories=["L", "N"]), min_size=1), value=st.integers() | st.text())
def test_an_unknown_key_is_named_at_any_depth(path, key, value):
    known = Config.model_fields
    for name in path:
        known = known[name].annotation.model_fields
    assume(key not in known)
    values = {key: value}
    for name in reversed(path):
        values = {name: values}
    for given_as in ((values,), ({}, [f"{'.'.join([*path, key])}={json.dumps(value)}"])):
        with pytest.raises(ConfigError) as caught:
            load_config(*given_as)
        assert f"unknown key '{'.'.join([*path, key])}'" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {"prompts": [{"path": "a", f"{key}_": value}]}})
    assert f"data.prompts.0.{key}_" in str(caught.value)


# -- prompts, answers and their masks

WORDS = ("<unk>", "<s>", "</s>", "Human:", "Assistant:", "[", "]", *(f"w{number}" for number in range(20)))
ID = {word: number for number, word in enumerate(WORDS)}
BYTES = make_tokenizer()
BYTES.chat_template = CHAT_TEMPLATE


def word_tokenizer():
    """One token a word, so that every expected row can be counted."""
    words = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    tokenizer.chat_template = "{% for message in messages %}[ {{ message['content'] }} ] {% endfor %}"
    return tokenizer


BY_WORD = word_tokenizer()
talks = st.lists(st.lists(st.sampled_from(WORDS[7:]), max_size=5), min_size=1, max_size=5)


def expected_ids(talk, most, human, assistant):
    """(ids, turns dropped): the longest rest of the talk that begins with a human turn and fits, else its end."""
    for dropped in range(1 - len(talk) % 2, len(talk), 2):
        rest = [(assistant if index % 2 else human)(words) for index, words in enumerate(talk[dropped:])]
        if sum(map(len, rest)) <= most:
            return [ID[word] for words in rest for word in words], dropped
    room = most - len(human([]))
    return [ID[word] for word in human(talk[-1][max(0, len(talk[-1]) - room) :])], len(talk) - 1


@examples(150)
@given(talk=talks, most=st.integers(3, 24))
def test_prompts_and_chats_keep_the_last_words_that_fit(talk, most):
    roles = ["assistant" if (len(talk) - index) % 2 == 0 else "human" for index in range(len(talk))]
    turns = [Turn(role, " ".join(words)) for role, words in zip(roles, talk, strict=True)]
    ids, dropped = expected_ids(talk, most - 1, lambda words: ["Human:", *words, "Assistant:"], list)
    assert encode_prompt(BY_WORD, turns, most) == ([ID["<s>"], *ids], dropped)
    ids, _ = expected_ids(talk, most, *[lambda words: ["[", *words, "]"]] * 2)
    assert encode_chat(BY_WORD, turns, most) == ids


some = st.text("aé\n \U0001f600,", max_size=4) | st.text(max_size=6) | st.just("</s>")
texts = st.lists(some, max_size=6).map("".join).filter(lambda text: "\N{REPLACEMENT CHARACTER}" not in text)


@examples(60)
@given(text=texts, most=st.integers(12, 40))
def test_any_text_keeps_its_end_between_whole_markers(text, most):
    head, tail = "\n\nHuman:", "\n\nAssistant:"
    ids, _ = encode_prompt(BYTES, [Turn("human", text)], most)
    shown = BYTES.decode(ids[1:])
    assert ids[0] == BYTES.bos_token_id and not set(ids[1:]) & set(BYTES.all_special_ids)
    assert shown.startswith(head) and shown.endswith(tail) and len(ids) <= most
    kept = shown[len(head) : -len(tail)]
    assert f" {text}".endswith(kept)
    assert kept == f" {text}" or len(ids) > most - 4  # of a character of four tokens, three may be too many
    chat = encode_chat(BYTES, [Turn("human", text)], most)
    assert len(chat) <= most and BYTES.decode(chat[:2]) == "<s>[INST]" and BYTES.decode(chat[-1:]) == "[/INST]"
    assert not set(chat[2:-1]) & set(BYTES.all_special_ids)


@examples(60)
@given(text=texts, ended=st.booleans(), most=st.integers(1, 40))
def test_answers_lose_nothing_but_their_end(text, ended, most):
    whole = encode_answer(BYTES, text, ended=False, max_tokens=10**6)
    assert BYTES.decode(whole) == (f" {text}" if text else "") and BYTES.eos_token_id not in whole
    expected = whole[:most] if len(whole) >= most or not ended else [*whole, BYTES.eos_token_id]
    assert encode_answer(BYTES, text, ended=ended, max_tokens=most) == expected


# -- what a rollout says of each token

some_tokens = st.lists(st.integers(3, 9), min_size=1, max_size=6)
some_rows = st.lists(st.tuples(some_tokens, some_tokens, st.booleans()), min_size=1, max_size=6)
ROLES = SimpleNamespace(device=torch.device("cpu"), model=None, lm_head=None)
ROLES.sampling = ROLES.use = lambda role: contextlib.nullcontext()
ROLES.hidden = lambda tokens: tokens.cumsum(1).float()  # knows what was read so far, and nothing of what follows
ROLES.value = lambda tokens: tokens.cumsum(1) + 0.5


@examples(60)
@given(rows=some_rows, at_once=st.integers(1, 4))
def test_a_rollout_speaks_of_every_response_token_and_of_no_other(rows, at_once):
    prompts, answers, ended = (list(column) for column in zip(*rows, strict=True))
    finish = ["eos" if end else "limit" for end in ended]
    logprobs = [[-float(token) for token in answer] for answer in answers]
    texts = [answer[:-1] if end else answer for answer, end in zip(answers, ended, strict=True)]
    said = Responses(answers, logprobs, finish, texts, list(map(int, ended)))
    scored = []
    fakes = {
        "sample": lambda *args, **kwargs: said,
        "token_logprobs": lambda hidden, head, targets, *args, entropy: (100 * hidden + targets, None),
    }

    def score(roles, found, pad_id, batch, role):
        return scored.extend(found) or torch.arange(len(found))

    batches, scale = RolloutBatches(*(BatchSize("rows", at_once) for _ in range(3))), Normalizer(mean=1.0, std=2.0)
    with mock.patch.object(sources, "score", score), mock.patch.multiple(rollout, **fakes):
        context = RolloutContext(ROLES, Coarse(), ResponseEnds(2, 0, []), scale, batches)
        found = collect(context, RolloutRequest(prompts, limit=6, seed=0))
    wide = max(len(prompt + answer) for prompt, answer, _ in rows)
    assert found.tokens.shape == (len(rows), wide) and found.mask.shape == (len(rows), wide - 1)
    for index, (prompt, answer, end) in enumerate(rows):
        row = prompt + answer
        assert found.tokens[index].tolist() == row + [0] * (wide - len(row)) and found.lengths[index] == len(row)
        for t in range(wide - 1):
            said_here = len(prompt) <= t + 1 < len(row)
            read, token = (sum(row[: t + 1]), row[t + 1]) if said_here else (0, 0)
            assert found.mask[index, t] == said_here and found.sampled[index, t] == -token
            for logprobs in (found.reference, found.logprobs):
                assert logprobs[index, t] == 100 * read + token
            assert found.values[index, t] == (read + 0.5) * said_here
        assert scored[index] == (prompt + answer[:-1] + [2] if end else row)
        assert found.scores[index] == (index - 1) / 2


some_lengths = st.lists(st.integers(1, 60) | st.integers(1, 900), min_size=1, max_size=25)


@examples(80)
@given(lengths=some_lengths, at_once=st.integers(1, 6), chooser=st.randoms(use_true_random=False))
def test_every_row_is_in_one_group_as_wide_as_its_longest(lengths, at_once, chooser):
    chosen = chooser.sample(range(len(lengths)), chooser.randint(1, len(lengths)))
    found = list(micro_batches(lengths, chosen, at_once))
    assert sorted(row for group, _ in found for row in group) == sorted(chosen)
    for number, (group, width) in enumerate(found):
        real = [lengths[row] for row in group]
        assert width == max(real) and len(group) * width <= at_once * max(lengths)
        assert sum(real[:-1]) < ENOUGH_TOKENS or 10 * len(group) * width <= 11 * sum(real)
        if number + 1 < len(found):  # a group ends only where one row more would not do
            longer = lengths[found[number + 1][0][0]]
            padded = (len(group) + 1) * longer
            wasteful = sum(real) >= ENOUGH_TOKENS and 10 * padded > 11 * (sum(real) + longer)
            assert longer >= width and (padded > at_once * max(lengths) or wasteful)


# -- Continuous Maximization

numbers = st.floats(-(2.0**100), 2.0**100) | st.floats(-3, 3)
shares = st.integers(0, 8).map(lambda eighths: eighths / 8)  # so that some meet tau
odd = st.sampled_from([math.nan, math.inf, -math.inf])
growths = st.builds(
    lambda more, wider, **drawn: Length(max=drawn["start"] + more, step=drawn["multiple"] + wider, **drawn),
    mode=st.sampled_from(["logistic", "linear"]),
    start=st.integers(1, 200),
    more=st.integers(0, 400),
    multiple=st.integers(1, 20),
    wider=st.integers(0, 80),
    **{name: st.floats(0, 4) for name in ("w_reward", "w_value")},
    tau=shares,
    decay=st.floats(0, 0.99),
    bias=st.floats(-4, 4),
)
updates = st.lists(st.tuples(numbers, numbers, shares), max_size=12)


@examples(100)
@given(limits=growths, seen=updates)
def test_the_limit_grows_by_the_gate_and_survives_json(limits, seen):
    state = start(limits)
    assert state.limit == limits.start
    for reward, loss, hit in seen:
        after = advance(state, limits, reward, loss, hit)
        x = limits.w_reward * state.reward.z(reward) - limits.w_value * state.value_loss.z(loss) + limits.bias
        assert abs(x - limits.bias) <= 3 * (limits.w_reward + limits.w_value) + 1e-9  # both clipped to 3
        exact = 1 / (1 + np.exp(-x)) if limits.mode == "logistic" else np.clip(0.5 + x / 4, 0, 1)
        assert after.gate == pytest.approx(exact, abs=1e-12)
        grown = after.limit - state.limit
        if hit < limits.tau:
            assert grown == 0
        elif after.limit < limits.max:
            assert grown % limits.multiple == 0 and abs(grown - limits.step * after.gate) <= limits.multiple / 2
        else:
            assert after.limit == limits.max and limits.step * after.gate >= grown - limits.multiple / 2
        assert 0 <= grown <= limits.step + limits.multiple / 2
        stored = json.loads(json.dumps([after.limit, list(after.reward), list(after.value_loss), after.gate]))
        state = LengthState(stored[0], RunningStats(*stored[1]), RunningStats(*stored[2]), stored[3])
        assert state == after


@examples(60)
@given(limits=growths, seen=updates, reward=numbers, more=st.floats(0, 1e6), hit=st.floats(0, 1), wrong=odd)
def test_more_reward_never_slows_and_more_critic_loss_never_speeds(limits, seen, reward, more, hit, wrong):
    state = start(limits)
    for update in seen:
        state = advance(state, limits, *update)
    here = advance(state, limits, reward, 0.0, 1.0)
    assert advance(state, limits, reward + more, 0.0, 1.0).gate >= here.gate
    assert advance(state, limits, reward, more, 1.0).gate <= here.gate
    for update in ((wrong, 0.0, hit), (0.0, wrong, hit), (0.0, 0.0, wrong)):
        assert advance(state, limits, *update) == state
    fixed = limits.model_copy(update={"mode": "fixed"})
    assert advance(state, fixed, reward, 0.0, 1.0) == state


@examples(80)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12), st.sampled_from([0, 0.5, 0.8, 0.95]), numbers)
def test_running_is_a_weighted_mean_and_spread(seen, decay, value):
    running = RunningStats()
    for each in seen:
        running = running.add(each, decay)
    latest = [max(1 - decay, 1 / (index + 1)) for index in range(len(seen))]
    weights = [latest[index] * math.prod(1 - later for later in latest[index + 1 :]) for index in range(len(seen))]
    mean = np.average(seen, weights=weights)
    spread = math.sqrt(np.average((np.array(seen) - mean) ** 2, weights=weights))
    assert running == pytest.approx((len(seen), mean, spread**2), abs=1e-9)
    assert running.z(value) == pytest.approx(np.clip((value - mean) / spread, -3, 3) if spread > 1e-5 else 0, abs=1e-6)


# -- token rewards and advantages


@st.composite
def responses(draw):
    """(mask, generator): a response somewhere in each row, or none at all."""
    width = draw(st.integers(1, 9))
    mask = np.zeros((draw(st.integers(1, 5)), width), bool)
    for row in mask:
        first = draw(st.integers(0, width - 1))
        row[first : draw(st.integers(first, width))] = True
    return mask, np.random.default_rng(draw(st.integers(0, 10**6)))


@examples(80)
@given(responses(), st.floats(0.1, 1), st.floats(0, 1), st.sampled_from([1e30, -1.0, math.nan]))
def test_advantages_are_the_sums_of_their_definition(given_rows, gamma, lam, junk):
    mask, random = given_rows
    rewards, values = random.normal(size=(2, *mask.shape))
    rewards[~mask] = values[~mask] = junk  # nothing outside a response counts
    advantages = np.zeros(mask.shape)
    for row, kept in enumerate(mask):
        last = max(np.flatnonzero(kept), default=-1)
        for t in np.flatnonzero(kept):
            for ahead in range(last - t + 1):
                following = values[row, t + ahead + 1] if t + ahead < last else 0.0
                delta = rewards[row, t + ahead] + gamma * following - values[row, t + ahead]
                advantages[row, t] += (gamma * lam) ** ahead * delta
    found = gae(torch.tensor(rewards), torch.tensor(values), torch.tensor(mask), gamma, lam)
    np.testing.assert_allclose(found.returns[torch.tensor(mask)], (advantages + values)[mask], rtol=0, atol=1e-9)
    kept = advantages[mask]
    if kept.size:
        white = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
        np.testing.assert_allclose(found.advantages[torch.tensor(mask)], white, rtol=0, atol=1e-6)
    assert not found.returns[torch.tensor(~mask)].any() and not found.advantages[torch.tensor(~mask)].any()


@examples(60)
@given(given_rows=responses(), kl_coef=st.floats(0, 2), junk=st.sampled_from([1e30, math.inf, math.nan]))
def test_token_rewards_are_the_penalty_and_one_score_a_row(given_rows, kl_coef, junk):
    mask, random = given_rows
    logprobs, reference = random.normal(size=(2, *mask.shape))
    logprobs[~mask] = reference[~mask] = junk
    scores = random.normal(size=len(mask))
    expected = np.zeros(mask.shape)
    for row, kept in enumerate(mask):
        for t in np.flatnonzero(kept):
            expected[row, t] = kl_coef * (reference[row, t] - logprobs[row, t])
            expected[row, t] += 0.0 if kept[t + 1 :].any() else scores[row]
    parts = (torch.tensor(each) for each in (scores, logprobs, reference, mask))
    np.testing.assert_allclose(token_rewards(*parts, kl_coef), expected, rtol=0, atol=1e-12)


# -- shards

KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
KINDS |= {torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
names = st.text(max_size=8).filter(lambda name: name != "__metadata__")


@st.composite
def any_tensor(draw):
    """Any bits, of any shape: a number, none at all, NaN."""
    dtype, shape = draw(st.sampled_from(list(KINDS))), draw(st.lists(st.integers(0, 5), max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    count = math.prod(shape) * dtype.itemsize
    bits = random.integers(0, 2 if dtype == torch.bool else 256, count, np.uint8)
    return torch.frombuffer(bytearray(bits), dtype=dtype).view(shape) if count else torch.zeros(shape, dtype=dtype)


models_of = st.dictionaries(names, any_tensor(), min_size=1, max_size=6)


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def known(tensors):
    return {name: (tensor.dtype, tuple(tensor.shape), raw(tensor)) for name, tensor in tensors.items()}


@examples(40)
@given(tensors=models_of, chunk=st.integers(1, 99), cut=st.integers(0, 9))
def test_what_is_written_is_what_others_read(tmp_path_factory, tensors, chunk, cut):
    file = tmp_path_factory.mktemp("shard") / "model.safetensors"
    content = b"".join(map(raw, tensors.values()))
    layout = [(name, KINDS[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    digest = shards.write_shard(file, layout, (content[at : at + chunk] for at in range(0, len(content), chunk)))
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert known(load_file(file)) == known(tensors)
    with shards.Reader(file, in_order=True) as reader:
        for entry in shards.read_header(file):
            first = min(cut, entry.shape[0]) if entry.shape else 0
            parts = [(0, first), (first, entry.shape[0] - first)] if entry.shape else [(0, 1)]
            read = b"".join(reader.read(shards.part_of(entry, *part)).tobytes() for part in parts)
            assert read == raw(tensors[entry.name]) == shards.read_bytes(entry).tobytes()
        assert reader.hash() == xxhash.xxh3_128(file.read_bytes()).hexdigest()


@st.composite
def merges(draw):
    """(model in shards, deltas as factors, other settings): numbers whose sums are exact in float32."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    weights, factors = {}, {}
    scale = draw(st.sampled_from([0.5, 2]))  # alpha / r
    for layer in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.sampled_from([1, 16, 17, 33, 50])), draw(st.integers(1, 5))
        dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
        name = f"model.layers.{layer}.mlp.up_proj"
        weights[f"{name}.weight"] = torch.tensor(random.integers(-128, 129, (rows, columns)) / 8).to(dtype)
        factors[name] = [torch.tensor(random.integers(1, 3, shape)).float() for shape in ((2, columns), (rows, 2))]
    whole = draw(models_of) | weights
    parts = draw(st.lists(st.integers(0, 2), min_size=len(whole), max_size=len(whole)))
    files = {f"model-{part}.safetensors": {} for part in sorted(set(parts))}
    for part, name in zip(parts, draw(st.permutations(list(whole))), strict=True):
        files[f"model-{part}.safetensors"][name] = whole[name]
    return files, factors, scale, draw(st.sampled_from([0.25, 1.0, 2.0, 3.0])), draw(st.sampled_from([1, 2**18]))


@examples(25)
@given(drawn=merges())
def test_a_merge_in_shards_is_the_sum_in_memory(tmp_path_factory, hand_adapter, drawn):
    files, factors, scale, ratio, chunk = drawn
    folder = tmp_path_factory.mktemp("merge")
    (instruct := folder / "instruct").mkdir()
    (instruct / "config.json").write_text('{"model_type": "mistral"}')
    for file, tensors in files.items():
        save_file(tensors, instruct / file)
    index = {name: file for file, tensors in files.items() for name in tensors}
    (instruct / shards.INDEX).write_text(json.dumps({"weight_map": index}))
    named = {f"{name}.lora_A.weight": down for name, (down, _) in factors.items()}
    named |= {f"{name}.lora_B.weight": up for name, (_, up) in factors.items()}
    adapter = hand_adapter(folder / "adapter", named, lora_alpha=2 * scale)
    with mock.patch.multiple(stream, CHUNK_ELEMENTS=chunk, COUNT_ALL=0):  # some chunks take the short way, some not
        merge(adapter, None, instruct, folder / "out", ratio=ratio)
    written = shards.read_model(folder / "out")
    assert {entry.name: file.name for file, entries in written.items() for entry in entries} == index
    for file, tensors in files.items():
        for name, (down, up) in factors.items():
            if (weight := tensors.get(f"{name}.weight")) is not None:
                change = ratio * scale * (up.double() @ down.double())
                tensors[f"{name}.weight"] = (weight.double() + change).to(weight.dtype)
        assert known(load_file(folder / "out" / file)) == known(tensors)


# -- checkpoints

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
some_json = st.recursive(
    scalars | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
states = st.dictionaries(st.text(), some_json, max_size=4)
others = st.sampled_from(["null", "3", '"a"', "[]", "{}"]) | some_json.map(json.dumps)


@examples(25)
@given(tensors=st.just({}) | models_of, state=states, step=st.integers(0, 10**8))
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path_factory, tensors, state, step):
    store = CheckpointStore(tmp_path_factory.mktemp("whole"))
    turned = torch.arange(6.0).view(2, 3).T  # lies in memory in another order, and is shared
    tensors = tensors | {"turned": turned, "turned again": turned}
    folder = store.save(Checkpoint(step, state, tensors))
    found, damaged = store.newest()
    assert (found.step, found.state, found.folder, damaged) == (step, state, folder, [])
    assert known(found.tensors) == known(tensors)


@examples(20)
@given(
    tensors=models_of,
    state=states,
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=6, max_size=6),
)
def test_one_bit_that_flipped_is_always_noticed(tmp_path_factory, tensors, state, flips):
    store = CheckpointStore(tmp_path_factory.mktemp("flipped"))
    store.save(Checkpoint(1, {}, {}))
    folder = store.save(Checkpoint(2, state, tensors))
    for number, (place, bit) in enumerate(flips):
        file = folder / (TENSORS, STATE, HASHES)[number % 3]
        content = file.read_bytes()
        at = min(int(place * len(content)), len(content) - 1)
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        found, damaged = store.newest()
        assert found.step == 1 and len(damaged) == 1 and folder.name in damaged[0]
        file.write_bytes(content)
    assert store.newest()[0].step == 2


@examples(50)
@given(content=others.map(str.encode) | st.binary(max_size=30), file=st.sampled_from([TENSORS, STATE, HASHES]))
def test_a_file_of_something_else_is_noticed(tmp_path_factory, content, file):
    store = CheckpointStore(tmp_path_factory.mktemp("other"))
    store.save(Checkpoint(1, {}, {}))
    (store.save(Checkpoint(2, {}, {})) / file).write_bytes(content)
    found, damaged = store.newest()
    assert found.step == 1 and len(damaged) == 1


some_steps = st.lists(st.integers(0, 99) | st.integers(999_990, 1_000_009), unique=True, min_size=1, max_size=6)
some_scores = st.lists(st.none() | st.integers(0, 3), min_size=6, max_size=6)


@examples(30)
@given(steps=some_steps.map(sorted), scores=some_scores, keep=st.integers(1, 3))
def test_the_newest_and_the_best_stay(tmp_path_factory, steps, scores, keep):
    store, kept = CheckpointStore(tmp_path_factory.mktemp("many"), keep), []
    known = {step: score for step, score in zip(steps, scores, strict=False) if score is not None}
    for step, score in zip(steps, scores, strict=False):
        store.save(Checkpoint(step, {}, {}), known)
        kept.append((step, score))
        best = max((pair for pair in kept if pair[1] is not None), key=lambda pair: (pair[1], pair[0]), default=None)
        kept = [pair for pair in kept if pair in kept[-keep:] or pair == best]
        assert [folder.name for folder in store.folders()] == [f"step-{step:06d}" for step, _ in kept]
        assert store.newest()[0].step == step


# -- lines of a run

records = st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=3), max_size=5)


@examples(60)
@given(records=records, chooser=st.randoms(use_true_random=False))
def test_lines_come_back_and_a_half_written_one_goes(tmp_path_factory, records, chooser):
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    write_jsonl(file, records[:1])
    for record in records[1:]:
        append_line(file, record)
    assert read_lines(file) == records
    content = file.read_bytes()
    file.write_bytes(content[: chooser.randint(0, len(content))])
    whole = file.read_bytes().count(b"\n")
    filter_lines(file, lambda record: True)
    assert read_lines(file) in (records[:whole], records[: whole + 1])  # one may lack its line break alone
    kept = len(read_lines(file))
    filter_lines(file, lambda record: record != records[0])
    assert read_lines(file) == [record for record in records[:kept] if record != records[0]]
