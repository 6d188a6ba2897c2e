"""Adapters as other tools write them: merged as the plain ones they are, or refused with the true cause."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lite_c2f.errors import ModelError
from lite_c2f.fine.merge import merge
from lite_c2f.fine.tensor_names import plain_name

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
START = "base_model.model."
LAYER = "model.layers.0."


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def merged_by_peft(base, adapter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        return model.merge_and_unload().state_dict()


@pytest.fixture(scope="module")
def by_peft(pico):
    """The base with the plain adapter merged into it by PEFT."""
    return merged_by_peft(pico["base"], pico["adapter"])


@pytest.fixture
def rewritten(pico, tmp_path):
    """The plain adapter with its tensors' names, its tensors and its configuration changed."""

    def write(rename=lambda name: name, more=None, without=(), **config):
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tensors = {rename(name): value for name, value in load_file(pico["adapter"] / WEIGHTS).items()}
        save_file(tensors | (more or {}), folder / WEIGHTS)
        content = json.loads((pico["adapter"] / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in content.items() if k not in without} | config))
        return folder

    return write


def merged_with(adapter, base, out, instruct=None, **given):
    shutil.rmtree(out, ignore_errors=True)
    report = merge(adapter, base, instruct or base, out, **given)
    return report, weights_of(out)


def is_right(merged, expected):
    assert set(merged) == set(expected)
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name]), name


def inside(part, after=LAYER):
    """A wrapper's part within the names."""
    return lambda name: name.replace(after, f"{after}{part}.")


# As seen in files: torch.compile of a whole FSDP2 model, of a model before PEFT, of single layers; FSDP1; activation
# checkpointing; Lightning's and DeepSpeed's engines; DDP; PEFT around PEFT; raw state dicts, with any adapter's name.
RENAMED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled before PEFT": lambda name: name.replace(START, f"{START}_orig_mod."),
    "compiled layers": inside("_orig_mod"),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{inside('_fsdp_wrapped_module')(name)}",
    "checkpointed": inside("_checkpoint_wrapped_module"),
    "all three": inside("_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod"),
    "engine": lambda name: f"_forward_module.{name}",
    "DDP": lambda name: f"module.{name}",
    "DDP of DDP": lambda name: f"module.module.{name}",
    "DDP before PEFT": lambda name: name.replace(START, f"{START}module."),
    "twice": lambda name: START + name,
    "default": lambda name: name.replace(".weight", ".default.weight"),
    "another name": lambda name: name.replace(".weight", ".policy_v2.weight"),
    "compiled and named": lambda name: f"_orig_mod.module.{name.replace('.weight', '.default.weight')}",
}


@pytest.mark.parametrize("how", RENAMED)
def test_wrappers_carry_no_meaning(tmp_path, pico, by_peft, rewritten, how):
    adapter = rewritten(RENAMED[how])
    assert set(load_file(adapter / WEIGHTS)) != set(load_file(pico["adapter"] / WEIGHTS))
    is_right(merged_with(adapter, pico["base"], tmp_path / "out")[1], by_peft)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (f"{START}model.layers.0.module.q_proj.lora_A.weight", "model.layers.0.module.q_proj.lora_A.weight"),
        (f"{START}model.orig_mod.q_proj.lora_A.weight", "model.orig_mod.q_proj.lora_A.weight"),
        (f"{START}model.a_orig_mod.q.lora_A.weight", "model.a_orig_mod.q.lora_A.weight"),
        (f"{START}model.layers.0.default.q_proj.lora_A.weight", "model.layers.0.default.q_proj.lora_A.weight"),
        (f"{START}lora_A.q_proj.default.weight", "lora_A.q_proj.default.weight"),
        (f"{START}model.q_proj.lora_A.weight.weight", "model.q_proj.lora_A.weight"),
        (f"{START}e.lora_embedding_A.default", "e.lora_embedding_A"),
        (f"{START}e.lora_embedding_A", "e.lora_embedding_A"),
        (f"{START}q.lora_B.default.bias", "q.lora_B.bias"),
        (f"{START}e.token_adapter.trainable_tokens_delta.default", "e.token_adapter.trainable_tokens_delta"),
        (f"{START}lm_head.modules_to_save.default.weight", "lm_head.weight"),
        (f"{START}lm_head.modules_to_save.weight", "lm_head.weight"),
        (f"{START}lm_head.original_module.weight", "lm_head.original_module.weight"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", None),
        ("base_model.layers.0.q_proj.lora_A.weight", None),
        ("base_model.models.layers.0.q_proj.lora_A.weight", None),
        ("module", None),
        ("base_model.model", None),
    ],
)
def test_only_whole_parts_in_their_places_are_dropped(name, plain):
    assert plain_name(name) == plain


def test_two_tensors_of_one_name_are_refused(tmp_path, pico, rewritten):
    tensors = load_file(pico["adapter"] / WEIGHTS)
    name = f"{START}{LAYER}self_attn.q_proj.lora_A.weight"
    adapter = rewritten(more={name.replace(".weight", ".other.weight"): tensors[name] * 2})
    with pytest.raises(ModelError, match=r"lora_A\.other\.weight'.*are both.*save that adapter alone"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- names in the configuration


PATTERNS = {  # as a wrapper's names stand in a pattern, and the pattern for plain names
    "a name": ("model.layers.0._checkpoint_wrapped_module.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
    "escaped": (r"layers\.\d+\._checkpoint_wrapped_module\.mlp\..*", r"layers\.\d+\.mlp\..*"),
    "at both ends": ("^_orig_mod.model.layers.1.mlp.up_proj._orig_mod", "^model.layers.1.mlp.up_proj"),
    "optional": (r"(_orig_mod\.)?model[.]layers[.]1[.]_orig_mod[.]mlp.*", "model.layers.1.mlp.*"),
    "a suffix": ("_forward_module.q_proj|v_proj._orig_mod", "q_proj|v_proj"),
}


@pytest.mark.parametrize("how", PATTERNS)
def test_wrappers_in_patterns_carry_no_meaning(tmp_path, pico, by_peft, rewritten, how):
    wrapped, plain = PATTERNS[how]
    expected = merged_by_peft(pico["base"], rewritten(alpha_pattern={plain: 64}))
    assert any(not torch.equal(expected[name], by_peft[name]) for name in expected)
    for rename in (
        inside("_checkpoint_wrapped_module"),
        lambda name: name,
    ):  # some tools clean the tensors' names alone
        adapter = rewritten(rename, alpha_pattern={wrapped: 64})
        is_right(merged_with(adapter, pico["base"], tmp_path / "out")[1], expected)


def test_wrappers_in_names_of_modules_trained_whole_carry_no_meaning(tmp_path, pico, rewritten):
    head = {f"{START}lm_head.weight": torch.ones(64, 32)}
    adapter = rewritten(more=head, modules_to_save=["_fsdp_wrapped_module.lm_head"])
    assert torch.equal(merged_with(adapter, pico["base"], tmp_path / "out")[1]["lm_head.weight"], torch.ones(64, 32))


def test_a_pattern_for_no_module_is_noted_as_peft_ignores_it(tmp_path, pico, by_peft, rewritten):
    adapter = rewritten(alpha_pattern={"k_projection": 64}, rank_pattern={"experts.*": 2})
    is_right(merged_by_peft(pico["base"], adapter), by_peft)
    report, merged = merged_with(adapter, pico["base"], tmp_path / "out")
    is_right(merged, by_peft)
    assert [note.split("'")[5] for note in report.notes if "fits no module" in note] == ["experts.*", "k_projection"]


@pytest.mark.parametrize(
    "pattern", [r"layers\.0\.[^.]+\.self_attn\.q_proj", r"^module.model.*", "base_model.model.*q_proj"]
)
def test_a_pattern_that_may_have_counted_is_refused_and_the_advice_works(tmp_path, pico, rewritten, pattern):
    """It fits a name that the module may have had in training: whether it did, no file says."""
    rename = inside("_checkpoint_wrapped_module")
    with pytest.raises(ModelError, match=r"'alpha_pattern' is .*such as 'model\.layers\.0\..*write it so.*remove") as e:
        merge(rewritten(rename, alpha_pattern={pattern: 64}), pico["base"], pico["base"], tmp_path / "out")
    named = str(e.value).split("such as '")[1].split("'")[0]
    expected = merged_by_peft(pico["base"], rewritten(alpha_pattern={named: 64}))
    is_right(merged_with(rewritten(rename, alpha_pattern={named: 64}), pico["base"], tmp_path / "out")[1], expected)


def test_two_values_of_one_module_are_refused(tmp_path, pico, rewritten):
    adapter = rewritten(alpha_pattern={"_orig_mod.q_proj": 64, "q_proj": 8})
    with pytest.raises(ModelError, match=r"'alpha_pattern' is .*64 and 8 for 'q_proj'"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")


TOOLS = {
    "ms-swift before 3": {"lora_dtype": "bf16", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6},
    "Unsloth": {
        "auto_mapping": {
            "base_model_class": "MistralForCausalLM",
            "parent_library": "transformers.models.mistral.modeling_mistral",
            "unsloth_fixed": True,
        },
        "base_model_name_or_path": "unsloth/base-unsloth-bnb-4bit",
        "task_type": None,
    },
    "PEFT 0.3": {"merge_weights": False, "enable_lora": None},
}


@pytest.mark.parametrize("tool", TOOLS)
def test_keys_of_other_tools_are_inert(tmp_path, pico, by_peft, rewritten, tool):
    adapter = rewritten(**TOOLS[tool])
    (adapter / "additional_config.json").write_text('{"lora_dtype": "bf16", "lorap_emb_lr": 1e-6}')  # ms-swift 4
    report, merged = merged_with(adapter, pico["base"], tmp_path / "out")
    is_right(merged, by_peft)
    assert report.notes == []


def test_what_another_tool_wrote_can_be_verified(tmp_path, pico, rewritten):
    adapter = rewritten(RENAMED["compiled and named"], **TOOLS["ms-swift before 3"])
    in_parts(adapter)
    report = merge(adapter, pico["base"], pico["instruct"], tmp_path / "out", 0.5, verify="w1 w2 w3")
    assert report.verified["compared"] and report.verified["error"] < 1e-3 * report.verified["effect"]


def test_an_old_configuration_without_newer_keys(tmp_path, pico, by_peft, rewritten):
    known = json.loads((pico["adapter"] / CONFIG).read_text())
    adapter = rewritten(without=set(known) - {"peft_type", "task_type", "r", "lora_alpha", "target_modules"})
    is_right(merged_with(adapter, pico["base"], tmp_path / "out")[1], by_peft)


# -- files


def in_parts(adapter):
    """As Transformers' own save_pretrained writes a large adapter."""
    tensors = sorted(load_file(adapter / WEIGHTS).items())
    half = len(tensors) // 2 + 1  # lora_A and lora_B of one module in two files
    for number, part in enumerate((tensors[:half], tensors[half:]), 1):
        save_file(dict(part), adapter / f"adapter_model-{number:05}-of-00002.safetensors")
    (adapter / WEIGHTS).unlink()


def pickled(adapter, legacy=False):
    torch.save(load_file(adapter / WEIGHTS), adapter / PICKLE, _use_new_zipfile_serialization=not legacy)
    (adapter / WEIGHTS).unlink()


def as_checkpoint(adapter):
    """A trainer's checkpoint."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, adapter / name)
    (adapter / "trainer_state.json").write_text("{}")
    (adapter / "global_step500").mkdir()


@pytest.mark.parametrize("change", [in_parts, pickled, lambda a: pickled(a, legacy=True), as_checkpoint])
def test_files_as_tools_write_them(tmp_path, pico, by_peft, rewritten, change, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    adapter = rewritten()
    change(adapter)
    report, merged = merged_with(adapter, pico["base"], tmp_path / "out")
    is_right(merged, by_peft)
    assert len(report.adapter["sha256"]) == 64
    assert list((tmp_path / "tmp").iterdir()) == []  # the pickle's copy is gone


class Code:
    """What a pickle must not do."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("content", [Code, [1, 2], {"a": 1}, {1: torch.ones(1)}])
def test_pickles_with_more_than_tensors_are_refused(tmp_path, pico, rewritten, content):
    adapter, mark = rewritten(), tmp_path / "was here"
    torch.save(Code(mark) if content is Code else content, adapter / PICKLE)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"the pickle '.*adapter_model\.bin'.*save it again"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")
    assert not mark.exists()


ODD = {  # tensors that unpickle without running code
    "on the device 'meta'": lambda: torch.zeros(2, 2, device="meta"),
    "torch.sparse_coo": lambda: torch.eye(2).to_sparse(),
    "torch.sparse_csr": lambda: torch.eye(2).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "values repeated from 1": lambda: torch.zeros(1).expand(2, 10**13),
    "torch.int64": lambda: torch.ones(2, 2, dtype=torch.int64),
    "torch.complex64": lambda: torch.ones(2, 2, dtype=torch.complex64),
    "torch.float8_e4m3fn": lambda: torch.ones(2, 2).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore:.*(nested|[Ss]parse|quantize|TypedStorage).*:UserWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning")
@pytest.mark.parametrize("what", ODD)
def test_pickled_tensors_that_are_not_plain_are_refused(tmp_path, pico, rewritten, what):
    adapter = rewritten()
    torch.save({"a.lora_A.weight": torch.ones(2), "b.lora_A.weight": ODD[what]()}, adapter / PICKLE)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.bin' .*save it again") as error:
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")
    problem = str(error.value).partition("has 'b.lora_A.weight', which is ")[2]
    assert what in problem and "\n" not in problem


def test_a_missing_part_is_named(tmp_path, pico, rewritten):
    adapter = rewritten()
    in_parts(adapter)
    (adapter / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no '.*00002-of-00002\.safetensors'.*every part"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")


def advised(error):
    return Path(str(error.value).split("did you mean '")[1].split("'")[0])


@pytest.mark.parametrize("below", ["checkpoint-1000", "v0-2026/checkpoint-1000", "default", "coarse/adapter"])
def test_a_folder_above_leads_to_the_newest_adapter(tmp_path, pico, rewritten, below):
    adapter = rewritten()
    for name in (below, below.replace("1000", "900"), below.replace("1000", "50")):
        shutil.copytree(adapter, tmp_path / "run" / name, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="did you mean") as error:
        merge(tmp_path / "run", pico["base"], pico["base"], tmp_path / "out")
    assert advised(error) == tmp_path / "run" / below
    assert merge(advised(error), pico["base"], pico["base"], tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        (["config.json", "model.safetensors"], "holds a whole model"),
        ([WEIGHTS], "beside the weights"),
        ([PICKLE], "beside the weights"),
        ([], "no hub name"),
    ],
)
def test_folders_that_are_no_adapter(tmp_path, pico, files, cause):
    (tmp_path / "a").mkdir()
    for name in files:
        (tmp_path / "a" / name).write_text("{}")
    with pytest.raises(ModelError, match=cause):
        merge(tmp_path / "a", pico["base"], pico["base"], tmp_path / "out")


def test_a_file_leads_to_its_folder(tmp_path, pico):
    with pytest.raises(ModelError, match="did you mean") as error:
        merge(pico["adapter"] / WEIGHTS, pico["base"], pico["base"], tmp_path / "out")
    assert advised(error) == pico["adapter"]
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"is of llama\.cpp.*converted from"):
        merge(tmp_path / "lora.gguf", pico["base"], pico["base"], tmp_path / "out")


@pytest.mark.parametrize(
    ("beside", "remedy"),
    [
        ("global_step500", "zero_to_fp32"),
        ("pytorch_model_fsdp_0", "accelerate merge-weights"),
        ("x", "copy them there"),
    ],
)
def test_checkpoints_of_many_gpus_without_an_adapters_weights(tmp_path, pico, rewritten, beside, remedy):
    adapter = rewritten()
    (adapter / WEIGHTS).unlink()
    (adapter / beside).mkdir()
    with pytest.raises(ModelError, match=remedy):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")


def test_ms_swifts_own_form_is_named(tmp_path, pico, rewritten):
    adapter = rewritten(swift_type="LORA", peft_type=None)
    with pytest.raises(ModelError, match=r"'swift_type' is 'LORA'.*train without use_swift_lora"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")


def test_a_4_bit_base_is_named_as_that(tmp_path, pico, editable, edit_json):
    base = editable("base")
    edit_json(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    tensors = load_file(base / "model.safetensors")
    name = f"{LAYER}self_attn.q_proj.weight"
    save_file(tensors | {name: torch.zeros(512, 1, dtype=torch.uint8)}, base / "model.safetensors")
    with pytest.raises(ModelError, match=r"'quantization_config'.*give the model that it was quantised from"):
        merge(pico["adapter"], base, pico["instruct"], tmp_path / "out")


# -- ZeRO-3


def test_empty_tensors_of_zero_3_are_named_and_the_remedy_works(tmp_path, pico, by_peft, rewritten):
    whole = load_file(pico["adapter"] / WEIGHTS)
    for empty in ({name: torch.zeros(0) for name in whole}, {max(whole): torch.zeros(0)}):
        with pytest.raises(ModelError, match=r"shape \(0,\).*ZeRO-3.*zero_to_fp32.*stage3_gather_16bit"):
            merge(rewritten(more=empty), pico["base"], pico["base"], tmp_path / "out")
    adapter = rewritten()
    save_file({}, adapter / WEIGHTS)  # 40 bytes, as Transformers before 5 left it
    with pytest.raises(ModelError, match=r"holds no tensors.*ZeRO-3.*zero_to_fp32"):
        merge(adapter, pico["base"], pico["base"], tmp_path / "out")
    # what zero_to_fp32.py writes: the model's own names, with the adapter's in them
    gathered = {name.replace(".weight", ".default.weight"): value.float() for name, value in whole.items()}
    save_file(gathered, adapter / WEIGHTS)
    is_right(merged_with(adapter, pico["base"], tmp_path / "out")[1], by_peft)
