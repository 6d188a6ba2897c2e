"""The planner: bytes worked out by hand for Mistral-7B, batches that fit, refusals that name the setting to change."""

import re
from pathlib import Path

import pytest

from lite_c2f.config import load_config
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.memory import as_json, check, explain, make_plan, settle
from lite_c2f.memory.plan import largest, usable
from lite_c2f.memory.sizes import MISTRAL_7B, Bytes, model_shape

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = Bytes(MISTRAL_7B, rank=16, dtype=2, quantized=True, checkpointing=True, on_gpu=True)


def config(*more, name="mistral-7b-24gb"):
    return load_config(CONFIGS / f"{name}.yaml", more)


def test_counts_of_mistral_7b_by_hand():
    """Published: 7.24 B parameters, 42 M in a rank-16 adapter on all linear layers, 128 KiB of cache a token."""
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert MISTRAL_7B.linear == 32 * layer == 6_979_321_856
    assert MISTRAL_7B.linear + MISTRAL_7B.embeddings == pytest.approx(7.24e9, rel=1e-3)
    assert MISTRAL_7B.adapter(16) == 41_943_040 and SIZES.adapter == 160 * 2**20
    assert SIZES.cache(1) == 128 * 1024
    assert SIZES.base / 2**30 == pytest.approx(3.84, abs=0.01)  # measured when the project was designed
    assert SIZES.adapter_copy == 80 * 2**20


def test_activations_of_mistral_7b_by_hand():
    """32 checkpoints of 8 KiB a token, and one layer: 18 h + 12 i + 4 k + 12 r bytes."""
    token = 32 * 8192 + 18 * 4096 + 12 * 14336 + 4 * 1024 + 12 * 16
    assert SIZES.backward(1000) - SIZES.backward(0) == 1000 * token
    assert token / 2**20 == pytest.approx(0.49, abs=0.01)
    assert SIZES.forward(1000) - SIZES.forward(0) == 1000 * 8 * (4096 + 14336)


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS.glob("mistral*.yaml")])
def test_every_shipped_config_fits_its_card(name):
    plan = make_plan(config(name=name))
    assert plan.fits is True and plan.refusals == []
    assert plan.largest_limit >= config(name=name).coarse.length.max
    check(plan)


def test_auto_takes_the_largest_batch_that_fits_and_settle_writes_it_down():
    wanted = config("coarse.length.max=2048", "fine.max_tokens=2048", "evaluation.max_tokens=2048")
    plan = make_plan(wanted)
    settled = settle(wanted, plan)
    assert settled.coarse.sampling_batch == plan.batches.sampling_batch >= 32
    assert settle(settled, make_plan(settled)) == settled and make_plan(settled).fits
    more = settled.model_copy(update={"coarse": settled.coarse.model_copy(update={"sampling_batch": 1000})})
    assert make_plan(more).batches.sampling_batch == 64  # never more than there are responses
    one_more = plan.batches.sampling_batch + 1
    tight = config("coarse.length.max=2048", f"coarse.sampling_batch={one_more}")
    assert make_plan(tight).fits is False
    assert 64 % plan.batches.reward_micro_batch == 0


def test_a_smaller_card_gets_smaller_batches_and_a_smaller_limit():
    big, small = make_plan(config(), 24), make_plan(config(), 16)
    assert small.batches.sampling_batch < big.batches.sampling_batch
    assert make_plan(config("coarse.sampling_batch=32"), 16).largest_limit < big.largest_limit


@pytest.mark.parametrize(
    ("more", "vram", "words"),
    [
        (
            ["coarse.sampling_batch=64", "coarse.length.max=2048"],
            24,
            r"sampling needs .*set coarse\.sampling_batch to 5\d",
        ),
        (["coarse.micro_batch=16", "coarse.length.max=2048"], 22, r"set coarse\.micro_batch to 1\d or auto"),
        (["reward.micro_batch=64"], 24, r"reward needs .*set reward\.micro_batch to 2\d"),
        (["evaluation.batch=128"], 24, r"set evaluation\.batch to 7\d"),
        (["coarse.length.max=30000"], 8, r"lower coarse\.length\.max to \d{4},"),
        (["coarse.length.mode=fixed", "coarse.length.start=30000"], 8, r"lower coarse\.length\.start to"),
        ([], 3, "lower data.max_answer_tokens"),
        ([], 8, "use smaller models or a larger card"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_setting_to_change(more, vram, words):
    plan = make_plan(config(*more), vram)
    assert plan.fits is False and re.search(words, "\n".join(plan.refusals))
    assert all("; expected at most " in line for line in plan.refusals)
    with pytest.raises(ConfigError) as error:
        check(plan)
    assert str(error.value) == plan.refusals[0] and "\n" not in plan.refusals[0]


def test_the_remedy_of_a_refusal_works():
    """What a refusal says to set is set, again and again, until the plan fits."""
    more = ["coarse.sampling_batch=64", "coarse.micro_batch=16", "reward.micro_batch=64", "evaluation.batch=128",
            "coarse.length.max=4096"]  # fmt: skip
    for _ in range(8):
        plan = make_plan(config(*more), 24)
        if plan.fits:
            break
        words = plan.refusals[0].split("set ")[1].split()
        more.append(f"{words[0]}={words[2]}")
    assert plan.fits


def test_without_a_card_nothing_is_refused_and_batches_are_those_of_a_cpu():
    plan = make_plan(load_config(CONFIGS / "toy.yaml"))
    assert plan.fits is None and plan.largest_limit is None and plan.refusals == []
    assert plan.batches.sampling_batch == 48 and plan.batches.micro_batch == 24
    auto = make_plan(load_config({}))
    assert auto.batches.sampling_batch == 64 and auto.batches.micro_batch >= 1


def test_growth_doubles_from_the_first_limit_to_the_last():
    plan = make_plan(config("coarse.length.start=100", "coarse.length.max=700"))
    assert [limit for limit, _, _ in plan.growth] == [100, 200, 400, 700]
    totals = [sampling.total for _, sampling, _ in plan.growth]
    assert totals == sorted(totals)
    found = as_json(plan)
    assert found["growth"][-1]["sampling_gib"] == found["stages"]["coarse_sampling"]["total"]
    text = explain(plan)
    assert "700 tokens" in text and "disk" in text and "usable" in text


def test_disk_counts_downloads_only_for_hub_names(pico):
    assert make_plan(config()).disk["downloads"] == 2 * make_plan(config()).disk["merged model"]
    here = config(f"model.base={pico['base']}", f"model.instruct={pico['instruct']}")
    assert make_plan(here).disk["downloads"] == 0


def test_shapes_come_from_the_folder(pico, tmp_path):
    shape, source = model_shape(str(pico["base"]))
    assert (shape.hidden, shape.layers, shape.key_value, shape.context) == (32, 2, 16, 64) and "config.json" in source
    (tmp_path / "config.json").write_text('{"hidden_size": "many"}')
    for folder, words in ((tmp_path, "not a decoder's configuration"), (tmp_path / "none", "no config.json")):
        with pytest.raises(ModelError, match=words):
            model_shape(str(folder))
    assert "assumed" in model_shape("somebody/a-model")[1]


def test_largest_is_a_bisection():
    assert [largest(10, lambda n, k=k: n <= k) for k in (3, 10, 99)] == [3, 10, 10]
    assert largest(10, lambda n: False) == 1 and largest(10, lambda n: False, 0) == 0
    assert usable(24) / 2**30 == pytest.approx(22.04)
