"""Every usual family of models: through all stages, or refused by config.json alone; and the table that says which."""

import contextlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from families import FAMILIES, REFUSED, data_file, table, write_config, write_pair
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizer_kinds import made
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lite_c2f.backbone.model_kind import check_kind
from lite_c2f.backbone.multi_model import MultiModel, residue_of
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora
from lite_c2f.errors import ModelError
from lite_c2f.fine.merge import merge
from lite_c2f.memory import make_plan
from lite_c2f.pipeline.train import train
from lite_c2f.runs.models import check_kinds
from lite_c2f.sampling.trial import custom_linear, difference

SETTINGS = [
    "data.max_prompt_tokens=40", "data.max_answer_tokens=24", "data.max_held_out=8", "lora.r=4",
    "reward.max_pairs=8", "reward.batch=4", "reward.micro_batch=4", "reward.epochs=1", "reward.lr=1e-3",
    "coarse.updates=2", "coarse.rollouts=4", "coarse.minibatches=2", "coarse.epochs=1", "coarse.critic_warmup=0",
    "coarse.length.start=8", "coarse.length.max=24", "coarse.sample_prompts=1", "fine.ratios=[1.0]", "fine.prompts=4",
    "fine.max_tokens=8", "evaluation.prompts=4", "evaluation.max_tokens=8",
]  # fmt: skip
DOCS = Path(__file__).parents[1] / "docs" / "models.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries' own, of tiny models
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_all_stages(tmp_path, name):
    base, instruct = write_pair(tmp_path, FAMILIES[name])
    models = [f"model.base={base}", f"model.instruct={instruct}"]
    run = tmp_path / "run"
    summary = train(load_config({}, [*models, f"data.preferences=[{data_file(tmp_path)}]", *SETTINGS]), run)
    assert set(summary["actors"]) == {"base", "instruct", "coarse", "fine"}
    # every adapted layer has learned something: PEFT begins with lora_B at zero
    for stage in ("reward", "coarse"):
        weights = load_file(run / stage / "adapter" / "adapter_model.safetensors")
        assert [key for key, weight in weights.items() if "lora_B" in key and not weight.any()] == []
        assert len(weights) >= 8
    AutoPeftModelForSequenceClassification.from_pretrained(run / "reward" / "adapter", num_labels=1)
    # the merged model is the instruct model with the residue, and the chat's rows are what stock classes say
    ids = torch.tensor([[9, 30, 31, 7, 40, 41, 11, 55, 8, 60, 61, 62, 20, 21]])  # longer than a window
    with torch.no_grad():
        plain, merged = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            for folder in (instruct, run / "fine" / "model")
        )
        own = {"plain": plain(ids).logits[0], "merged": merged(ids).logits[0]}
        coarse = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), run / "coarse" / "adapter"
        ).eval()
        own["coarse"] = coarse(ids).logits[0]
        together = MultiModel([coarse, plain], residue_of(coarse, "default"))
        hidden = together.hidden(ids.expand(3, -1), [0, 1, 1], [1.0, 0.0, 1.0], None)
        rows = torch.stack([together.logits(states) for states in hidden.unbind(1)], dim=1)
    for row, actor in zip(rows, ("coarse", "plain", "merged"), strict=True):
        torch.testing.assert_close(row, own[actor], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(own["plain"], own["merged"], atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_by_its_config_alone(tmp_path, name):
    """There is nothing else in the folder: neither weights nor tokenizer can have been read."""
    write_config(tmp_path, REFUSED[name])
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    config = load_config({}, [f"model.base={tmp_path}", f"model.instruct={tmp_path}"])
    reason = f"{architecture} .*{REFUSED[name].refused}.*; expected .*; (choose|set) "
    with pytest.raises(ModelError, match=reason) as caught:
        check_kinds(config)
    assert "\n" not in str(caught.value)
    if "model.quantization=none" in str(caught.value):  # its advice, followed
        check_kinds(load_config(config.model_dump(), ["model.quantization=none"]))


@pytest.mark.parametrize("command", [("plan",), ("plan", "--vram", "80"), ("train",), ("train", "--dry-run")], ids=str)
@pytest.mark.parametrize("name", ["Mixtral", "Granite"])
def test_every_command_that_reads_a_configuration_refuses(tmp_path, call, command, name):
    """One by its keys, one by what Transformers has for it; nothing is written."""
    for folder in ("base", "instruct"):
        write_config(tmp_path / folder, REFUSED[name])
        made("qwen").save_pretrained(tmp_path / folder)
    (tmp_path / "c.yaml").write_text("run: {seed: 0}\n")
    settings = [f"model.{folder}={tmp_path / folder}" for folder in ("base", "instruct")]
    settings += [f"run.dir={tmp_path / 'run'}", f"data.preferences=[{data_file(tmp_path)}]"]
    code, out, err = call(command[0], tmp_path / "c.yaml", *settings, *command[1:])
    assert code == 2 and not out and err.count("\n") == 1
    assert f"{name}ForCausalLM has " in err and REFUSED[name].refused in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_passes_the_trial(tmp_path, name):
    """Sampler, decoder and head, and rows beside another model, in windows and out of them."""
    write_config(tmp_path, FAMILIES[name])
    check_kinds(load_config({}, [f"model.base={tmp_path}", f"model.instruct={tmp_path}"]))


@pytest.mark.parametrize("name", ["Granite", "Cohere"])
def test_a_scaled_head_is_computed_as_the_model_computes_it(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(REFUSED[name].model_type, vocab_size=96, **REFUSED[name].config)
    assert difference(AutoModelForCausalLM.from_config(config).eval()) is None


@pytest.mark.parametrize("name", ["OPT", "GPT-2"])
@pytest.mark.filterwarnings("ignore")
def test_rows_of_several_models_with_layouts_of_their_own(tmp_path, name):
    """OPT flattens rows and tokens into one dimension, GPT-2 gives one row of positions for all."""
    base, instruct = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in write_pair(tmp_path, FAMILIES[name])
    )
    coarse = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for key, weight in coarse.named_parameters():
            if "lora_B" in key:
                weight.normal_(std=0.2)
        ids = torch.tensor([[9, 30, 31, 7, 40], [9, 8, 5, 4, 3], [11, 12, 13, 14, 15]])
        own = [coarse(ids[:1]).logits[0], coarse(ids[1:2]).logits[0], instruct(ids[2:]).logits[0]]
        with coarse.disable_adapter():
            bare = coarse(ids[:1]).logits[0]
        together = MultiModel([coarse, instruct], residue_of(coarse, "default"))
        hidden = together.hidden(ids, [0, 0, 1], [0.0, 1.0, 0.0], None)
        rows = torch.stack([together.logits(states) for states in hidden.unbind(1)], dim=1)
    for row, expected in zip(rows, (bare, *own[1:]), strict=True):
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bare, own[0], atol=1e-2)


PUBLISHED = {  # sizes as published, that a small copy has to keep together
    "GPT-Neo": ("gpt_neo", {"window_size": 256, "attention_types": [[["global", "local"], 6]], "num_layers": 12,
                            "num_heads": 12, "hidden_size": 768}, "token by token"),
    "Phi-2": ("phi", {"hidden_size": 2560, "num_attention_heads": 32, "partial_rotary_factor": 0.4}, None),
    "OPT-350M": ("opt", {"hidden_size": 1024, "word_embed_proj_dim": 512, "num_attention_heads": 16,
                         "do_layer_norm_before": False}, None),
    "BLOOM": ("bloom", {"hidden_size": 64, "n_head": 4, "n_layer": 2}, "ALiBi"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_as_published(tmp_path, name):
    kind, keys, reason = PUBLISHED[name]
    AutoConfig.for_model(kind, **keys).save_pretrained(tmp_path)
    config = load_config({}, [f"model.base={tmp_path}", f"model.instruct={tmp_path}"])
    if reason is None:
        return check_kinds(config)
    with pytest.raises(ModelError, match=reason):
        check_kinds(config)


def test_a_plan_of_two_lineages_or_of_a_folder_that_is_not_there(tmp_path, call):
    for name, family in (("base", "Qwen3"), ("instruct", "Llama")):
        write_config(tmp_path / name, FAMILIES[family])
    (tmp_path / "c.yaml").write_text("run: {seed: 0}\n")
    models = [f"model.base={tmp_path / 'base'}", f"model.instruct={tmp_path / 'instruct'}"]
    code, _, err = call("plan", tmp_path / "c.yaml", *models)
    assert code == 2 and "two models of one lineage" in err
    with contextlib.chdir(tmp_path):
        (tmp_path / "models").mkdir()
        config = load_config({}, [f"model.base={tmp_path / 'base'}", "model.instruct=models/nope"])
        assert any("no folder 'models/nope' here" in warning for warning in make_plan(config).warnings)


KEYS = {
    "images": ({"vision_config": {"hidden_size": 8}, "text_config": {}}, "reads images"),
    "encoder": ({"is_encoder_decoder": True}, "encoder"),
    "experts of DeepSeek": ({"n_routed_experts": 64}, "n_routed_experts=64"),
    "latent keys": ({"kv_lora_rank": 512}, "kv_lora_rank=512"),
    "linear attention": ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
    "Mamba": ({"layers_block_type": ["mamba", "attention"]}, "mamba"),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_rule_a_model_out(tmp_path, case):
    keys, reason = KEYS[case]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "architectures": ["XForCausalLM"], **keys}))
    with pytest.raises(ModelError, match=f"XForCausalLM .*{reason}"):
        check_kind(tmp_path)


@pytest.mark.parametrize(
    "keys",
    [{"num_experts": 0}, {"num_local_experts": None}, {"num_experts_per_tok": 2}, {"layer_types": ["full_attention"]}],
    ids=str,
)
def test_keys_that_rule_nothing_out(tmp_path, keys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", **keys}))
    check_kind(tmp_path)


def test_a_key_that_its_class_does_not_know_is_no_window(tmp_path):
    """A Mistral that was made a Llama keeps sliding_window in its config.json; Llama's attention does not slide."""
    write_config(tmp_path, FAMILIES["Llama"], sliding_window=6)
    assert json.loads((tmp_path / "config.json").read_text())["sliding_window"] == 6
    config = load_config({}, [f"model.base={tmp_path}", f"model.instruct={tmp_path}"])
    check_kinds(config)


def spoilt(change):
    """A small Llama, changed so that PPO and the sampler would compute something else than the model does."""
    config = LlamaConfig(**{**FAMILIES["Llama"].config, "vocab_size": 96})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4.0)
    change(model)
    return model


def scaled_logits(model):
    own = model.forward

    def forward(*args, **given):
        out = own(*args, **given)
        out.logits = out.logits * 2
        return out

    model.forward = forward


def sees_the_future(model):
    layer = model.model.layers[0]
    own = layer.forward

    def forward(states, *args, **given):
        return own(states + states.mean(1, keepdim=True), *args, **given)

    layer.forward = forward


def counts_from_the_end(model):
    """Right in one pass, wrong from a cache: positions that start anew in every call."""
    own = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda states, position_ids: own(states, position_ids - position_ids[:, -1:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (scaled_logits, "does more between its last layer and its logits"),
        (sees_the_future, "no causal decoder"),
        (counts_from_the_end, "token by token"),
    ],
)
def test_the_trial_names_what_is_not_as_the_sampler_has_it(change, reason):
    assert difference(spoilt(lambda model: None)) is None
    assert reason in difference(spoilt(change))


def test_a_linear_layer_of_its_own_class_is_named():
    class Own(torch.nn.Linear):
        pass

    model = spoilt(lambda model: None)
    assert custom_linear(model) is None
    model.model.layers[1].mlp.up_proj = Own(64, 128)
    assert custom_linear(model) == "Own"


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_not_trained_still_merges(tmp_path, name):
    """An adapter from elsewhere, on attention: by PEFT's own merge."""
    base, instruct = write_pair(tmp_path, REFUSED[name])
    torch.manual_seed(1)
    targets = r".*(q_proj|query_key_value|dense)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_B" in key:
                    weight.normal_(std=0.1)
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        merge(tmp_path / "adapter", base, instruct, tmp_path / "out", ratio=1.0)
        stock = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.float32), tmp_path / "adapter"
        )
        expected = stock.merge_and_unload().state_dict()
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert merged.keys() == expected.keys()
    for key, weight in merged.items():
        torch.testing.assert_close(weight, expected[key], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_gpt2_unquantised_says_from_dense_copies_what_it_computes(tmp_path):
    """Its linear layers store (in, out)."""
    base, _ = write_pair(tmp_path, FAMILIES["GPT-2"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    roles = Roles(model, Lora(r=4, alpha=8), ("policy",))
    with torch.no_grad():
        for weight in roles.adapter_parameters("policy"):
            weight.normal_(std=0.2)
    tokens = torch.tensor([[3, 9, 20, 33]])
    with roles.use("policy"):
        expected = roles.hidden(tokens)
    with roles.use("reference"):
        assert not torch.allclose(roles.hidden(tokens), expected, atol=1e-2)
    with roles.sampling("policy"):
        torch.testing.assert_close(roles.hidden(tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_table_in_docs_is_that_of_these_tests():
    assert table() in DOCS.read_text(encoding="utf-8"), "write it anew: python tests/families.py"
