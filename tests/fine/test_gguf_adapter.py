"""Exported GGUF adapters: the change that PEFT makes, in llama.cpp's names and order; refusals leave nothing behind."""

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
from families import FAMILIES, write_config
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizer_kinds import CHATML, made
from transformers import AutoConfig, AutoModelForCausalLM

from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.fine.gguf_adapter import export_adapter
from lite_c2f.fine.ollama_template import GEMMA, LLAMA3, PHI3, TEMPLATES, find_template, render

WEIGHTS = "adapter_model.safetensors"
# By hand, from llama.cpp's files: layer 1's names.
NAMES = {
    "self_attn.q_proj": "blk.1.attn_q",
    "self_attn.k_proj": "blk.1.attn_k",
    "self_attn.v_proj": "blk.1.attn_v",
    "self_attn.o_proj": "blk.1.attn_output",
    "self_attn.qkv_proj": "blk.1.attn_qkv",
    "mlp.gate_proj": "blk.1.ffn_gate",
    "mlp.up_proj": "blk.1.ffn_up",
    "mlp.down_proj": "blk.1.ffn_down",
    "mlp.gate_up_proj": "blk.1.ffn_up",
}
TINY = {
    "llama": ("Llama", "llama"),
    "mistral": ("Mistral", "llama"),
    "qwen2": ("Qwen2", "qwen2"),
    "qwen3": ("Qwen3", "qwen3"),
    "gemma": ("Gemma 1", "gemma"),
    "phi3": ("Phi-3", "phi3"),
}


def read(file):
    """(metadata, {tensor name: matrix}) of a GGUF file."""
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    return values, tensors


def delta_of(values, tensors, name):
    """What llama.cpp adds at scale 1: alpha / rank * B @ A, with the rank of B."""
    down, up = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
    return values["adapter.lora.alpha"] / up.shape[1] * up.astype(np.float64) @ down.astype(np.float64)


def uninterleaved(matrix, heads):
    """llama.cpp's rows (first, second, first, second, ...) of each head as Transformers has them, row by row."""
    width = len(matrix) // heads
    rows = []
    for head in range(heads):
        own = matrix[head * width : (head + 1) * width]
        rows += [own[place] for place in range(0, width, 2)] + [own[place] for place in range(1, width, 2)]
    return np.stack(rows)


@pytest.fixture
def trained(tmp_path):
    """A tiny model of a family (its configuration on disk) with an adapter of rsLoRA, other ranks and alphas."""

    def make(kind, **lora):
        write_config(tmp_path / "model", FAMILIES[TINY[kind][0]])
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model"))
        settings = {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": "all-linear"} | lora
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if ".lora_B." in name:
                    weight.copy_(0.1 * torch.randn_like(weight))
        adapted.save_pretrained(tmp_path / "adapter")
        return adapted

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TINY)
def test_the_change_is_pefts(tmp_path, trained, kind):
    adapted = trained(kind, rank_pattern={"o_proj": 2}, alpha_pattern={"down_proj": 5})
    written = export_adapter(tmp_path / "adapter", tmp_path / "model", tmp_path / "out" / "r.gguf", ratio=0.5)
    values, tensors = read(tmp_path / "out" / "r.gguf")
    assert values["general.type"] == "adapter" and values["adapter.type"] == "lora"
    assert values["general.architecture"] == written.architecture == TINY[kind][1]
    config = adapted.config
    layer = adapted.base_model.model.model.layers[1]
    checked = 0
    for module, name in NAMES.items():
        owner, _, last = module.partition(".")
        if not hasattr(getattr(layer, owner), last):
            continue
        expected = 0.5 * getattr(getattr(layer, owner), last).get_delta_weight("default").detach().double().numpy()
        got = delta_of(values, tensors, name)
        if written.architecture == "llama" and last in ("q_proj", "k_proj"):
            got = uninterleaved(got, config.num_attention_heads if last == "q_proj" else config.num_key_value_heads)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
        checked += 1
    assert len(tensors) == 2 * 2 * checked == 2 * written.weights  # A and B, two layers


@pytest.mark.filterwarnings("ignore")
def test_a_plain_adapter_keeps_its_bits(tmp_path, trained):
    """One scaling everywhere: B is not multiplied, whatever the ratio; alpha has it."""
    trained("qwen2", use_rslora=False)
    export_adapter(tmp_path / "adapter", tmp_path / "model", tmp_path / "out" / "r.gguf", ratio=0.3)
    values, tensors = read(tmp_path / "out" / "r.gguf")
    assert values["adapter.lora.alpha"] == np.float32(6 * 0.3)
    own = load_file(tmp_path / "adapter" / WEIGHTS)
    stem = "base_model.model.model.layers.0.mlp.up_proj.lora"
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight.lora_a"], own[f"{stem}_A.weight"].numpy())
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight.lora_b"], own[f"{stem}_B.weight"].numpy())


@pytest.mark.filterwarnings("ignore")
def test_ratios_by_layer_and_float16(tmp_path, trained):
    """Layer 1 at twice layer 0; a weight at ratio 0 is not in the file."""
    trained("qwen2", use_rslora=False)
    patterns = [("*.v_proj.*", 0.0), ("*.layers.0.*", 0.5), ("*", 1.0)]
    export_adapter(tmp_path / "adapter", tmp_path / "model", tmp_path / "out" / "r.gguf", layer_ratios=patterns)
    values, tensors = read(tmp_path / "out" / "r.gguf")
    assert not [name for name in tensors if "attn_v" in name]
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model")), tmp_path / "adapter"
    )
    for layer, ratio in ((0, 0.5), (1, 1.0)):
        expected = adapted.base_model.model.model.layers[layer].mlp.up_proj.get_delta_weight("default")
        got = delta_of(values, tensors, f"blk.{layer}.ffn_up")
        np.testing.assert_allclose(got, ratio * expected.detach().double().numpy(), rtol=1e-5, atol=1e-7)
    export_adapter(tmp_path / "adapter", tmp_path / "model", tmp_path / "half" / "r.gguf", dtype="float16")
    assert {str(tensor.dtype) for tensor in read(tmp_path / "half" / "r.gguf")[1].values()} == {"float16"}
    assert (tmp_path / "half" / "r.gguf").stat().st_size < 0.6 * (tmp_path / "out" / "r.gguf").stat().st_size


class Broken:
    """A pico model and its adapter, to be changed by a case."""

    def __init__(self, root, pico):
        self.root, self.model, self.adapter, self.more = root, root / "model", root / "adapter", []
        shutil.copytree(pico["instruct"], self.model)
        shutil.copytree(pico["adapter"], self.adapter)
        self.out = root / "out" / "r.gguf"

    def config(self, folder, **changes):
        file = next(folder.glob("*config.json")) if folder == self.adapter else folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def weights(self, change):
        tensors = load_file(self.adapter / WEIGHTS)
        change(tensors)
        save_file(tensors, self.adapter / WEIGHTS, metadata={"format": "pt"})


def lora(module, rows, columns):
    """Adds the LoRA of a module."""

    def change(tensors):
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.ones(4, columns)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.ones(rows, 4)

    return lambda broken: broken.weights(change)


def embedding_lora(broken):
    def change(tensors):
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.ones(4, 64)
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = torch.ones(32, 4)

    broken.weights(change)


def whole_norm(broken):
    broken.config(broken.adapter, modules_to_save=["norm"])
    broken.weights(lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(32)}))


def untrained(broken):
    broken.weights(lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])


def unknown_pattern(broken):
    (broken.root / "r.yaml").write_text('"*.nothing": 1')
    broken.more += ["--layer-ratios", str(broken.root / "r.yaml")]


def too_large(broken):
    broken.weights(lambda tensors: [t.mul_(1e7) for name, t in tensors.items() if "lora_B" in name])
    broken.more += ["--dtype", "float16"]


def existing(name):
    def make(broken):
        broken.out.parent.mkdir()
        (broken.out.parent / name).write_text("mine")

    return make


def options(*more):
    return lambda broken: broken.more.extend(more)


CASES = {
    "DoRA": (lambda b: b.config(b.adapter, use_dora=True), "'use_dora' is True .* drops DoRA's magnitudes"),
    "LoHa": (lambda b: b.config(b.adapter, peft_type="LOHA"), "convert it with PEFT's convert_to_lora"),
    "PiSSA": (lambda b: b.config(b.adapter, init_lora_weights="pissa"), "'init_lora_weights'"),
    "embedding": (embedding_lora, "changes 'model.embed_tokens.weight', .*; merge it with `lite-c2f merge`"),
    "head": (lora("lm_head", 64, 32), "changes 'lm_head.weight', .*; merge it with `lite-c2f merge`"),
    "whole modules": (whole_norm, "whole weights .*'model.norm.weight'; expected LoRA of linear layers alone"),
    "family": (lambda b: b.config(b.model, model_type="falcon"), "family 'falcon', .*; expected one of llama, mistral"),
    "no sizes": (lambda b: b.config(b.model, num_attention_heads=None), "lacks a size"),
    "another model": (lambda b: b.config(b.model, intermediate_size=50), r"\(32, 48\), its weight in .* \(32, 50\)"),
    "fewer layers": (lambda b: b.config(b.model, num_hidden_layers=1), "'model.layers.1.* does not have"),
    "untrained": (untrained, "every lora_B of the adapter is 0; expected a trained adapter"),
    "reward adapter": (lambda b: b.config(b.adapter, task_type="SEQ_CLS"), "adapter of the policy"),
    "no ratio": (options("--ratio", "0"), "changes nothing"),
    "negative": (options("--ratio", "-1"), "'ratio' is -1.0; expected a finite number from 0 up"),
    "pattern": (unknown_pattern, "fits no weight"),
    "no GGUF": (lambda b: setattr(b, "out", b.root / "out" / "r.bin"), "does not end in .gguf"),
    "file there": (existing("r.gguf"), "r.gguf' exists; expected a new file"),
    "Modelfile there": (existing("Modelfile"), "Modelfile' exists"),
    "README there": (existing("README.md"), "README.md' exists"),
    "beyond float16": (too_large, "values beyond float16; expected smaller ones; use float32"),
    "no adapter": (lambda b: shutil.rmtree(b.adapter), "adapter_config.json"),
    "no model": (lambda b: shutil.rmtree(b.model), "no folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, pico, call, case):
    change, expected = CASES[case]
    broken = Broken(tmp_path, pico)
    change(broken)
    before = sorted(tmp_path.rglob("*"))
    paths = ["--adapter", broken.adapter, "--model", broken.model, "--gguf-adapter", broken.out]
    code, out, err = call("export", *map(str, paths), *broken.more)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(expected, err), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["--adapter", "a"], ["--model", "m"]])
def test_what_to_export_is_named(call, arguments):
    code, _, err = call("export", *arguments, "--gguf-adapter", "r.gguf")
    assert code == 2 and err.count("\n") == 1 and "expected a run, or --adapter with --model" in err


@pytest.mark.slow
def test_a_run_is_exported(tmp_path, call, toy_run):
    """Its Coarse Actor for its instruct model; the ratio is suggested, and folded in only when asked."""
    code, _, err = call("export", str(toy_run), "--adapter", "a", "--model", "m", "--gguf-adapter", "r.gguf")
    assert code == 2 and "a run and --adapter or --model; expected" in err
    ratio = json.loads((toy_run / "fine" / "merge.json").read_text())["ratio"]
    code, out, _ = call("export", str(toy_run), "--gguf-adapter", str(tmp_path / "a" / "r.gguf"), "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["architecture"] == "llama" and found["size"] == (tmp_path / "a" / "r.gguf").stat().st_size
    )
    plain, _ = read(tmp_path / "a" / "r.gguf")
    if ratio != 1:
        assert f"r.gguf:{ratio:g}" in (tmp_path / "a" / "README.md").read_text()
    code, out, _ = call("export", str(toy_run), "--gguf-adapter", str(tmp_path / "b" / "r.gguf"), "--ratio", "0.25")
    folded, _ = read(tmp_path / "b" / "r.gguf")
    assert code == 0 and "r.gguf" in out
    assert folded["adapter.lora.alpha"] == pytest.approx(0.25 * plain["adapter.lora.alpha"])
    assert "The ratio is in the file: use scale 1." in (tmp_path / "b" / "README.md").read_text()


# Chat templates of Transformers as they are published, shortened to what they do.
TURNS = "{% for m in messages %}"
JINJA = {
    "ChatML": (CHATML, {}),
    "Llama 3": (
        "{{ bos_token }}" + TURNS + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        {},
    ),
    "Gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ m.content }}<end_of_turn>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        {},
    ),
    "Phi-3": (
        TURNS + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        {},
    ),
    "Mistral": (
        "{{ bos_token }}" + TURNS + "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}"
        "</s>{% endif %}{% endfor %}",
        {},
    ),
}  # fmt: skip


def tokenizer_with(template):
    tokenizer = made("llama3")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", JINJA)
def test_known_chat_templates_are_found(name):
    template, system = find_template(tokenizer_with(JINJA[name][0]), {})
    assert template.name == name and system == ""


def test_a_system_text_of_the_template_goes_into_the_modelfile(tmp_path, pico):
    default = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    template, system = find_template(tokenizer_with(default + CHATML), {})
    assert (template.name, system) == ("ChatML", "You are Tiny.")
    shutil.copytree(pico["instruct"], tmp_path / "model")
    tokenizer_with(default + CHATML).save_pretrained(tmp_path / "model")
    written = export_adapter(pico["adapter"], tmp_path / "model", tmp_path / "out" / "r.gguf", suggested_scale=0.75)
    assert written.template == "ChatML"
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "FROM ./MODEL.gguf",
        "ADAPTER ./r.gguf",
        'TEMPLATE """{{ if .System }}<|im_start|>system',
        "{{ .System }}<|im_end|>",
        "{{ end }}{{ if .Prompt }}<|im_start|>user",
        "{{ .Prompt }}<|im_end|>",
        "{{ end }}<|im_start|>assistant",
        "{{ .Response }}<|im_end|>",
        '"""',
        'SYSTEM """You are Tiny."""',
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|im_start|>"',
    ]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert (
        "llama-cli -m ./MODEL.gguf --lora-scaled r.gguf:0.75" in readme and "export again with `--ratio 0.75`" in readme
    )


@pytest.mark.parametrize(
    "template",
    [None, TURNS + "{{ m.content }}{% endfor %}", CHATML.replace("end|>\n", "end|>"), "{{ raise_exception('x') }}"],
)  # fmt: skip
def test_another_chat_template_is_left_to_ollama(tmp_path, pico, call, template):
    assert find_template(tokenizer_with(template), {}) is None
    shutil.copytree(pico["instruct"], tmp_path / "model")
    tokenizer_with(template).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=template is None)
    if template is not None:
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
    paths = ["--adapter", pico["adapter"], "--model", tmp_path / "model", "--gguf-adapter", tmp_path / "o" / "r.gguf"]
    code, out, _ = call("export", *map(str, paths))
    text = (tmp_path / "o" / "Modelfile").read_text()
    assert code == 0 and out.count("\n") == 2 and "the Modelfile has no TEMPLATE" in out
    assert 'TEMPLATE """' not in text and "# No TEMPLATE" in text and 'PARAMETER stop "<|end_of_text|>"' in text


def test_what_ollama_renders():
    """By hand, and the same from Go 1.19's text/template with Ollama's way of taking turns and of cutting the last."""
    user, answer, more = ({"role": r, "content": c} for r, c in (("user", "U"), ("assistant", "A"), ("user", "V")))
    system = {"role": "system", "content": "S"}
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert render(LLAMA3.text, [system, user, answer, more]) == (
        f"{header.format('system')}S<|eot_id|>{header.format('user')}U<|eot_id|>{header.format('assistant')}A<|eot_id|>"
        f"{header.format('user')}V<|eot_id|>{header.format('assistant')}"
    )
    assert render(PHI3.text, [user]) == "<|user|>\nU<|end|>\n<|assistant|>\n"
    assert render(GEMMA.text, [system, user, answer, more]) == (
        "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n"
    )
    rendered = {render(template.text, [user, answer, more]) for template in TEMPLATES if template.name == "Mistral"}
    assert "[INST] U [/INST]A</s>[INST] V [/INST]" in rendered and "[INST] U[/INST] A</s>[INST] V[/INST]" in rendered
    assert len(rendered) == 8


def test_settings_and_missing_package(tmp_path, pico, monkeypatch):
    with pytest.raises(ConfigError, match="'dtype' is 'int8'"):
        export_adapter(pico["adapter"], pico["instruct"], tmp_path / "r.gguf", dtype="int8")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match="expected the package gguf; pip install gguf"):
        export_adapter(pico["adapter"], pico["instruct"], tmp_path / "r.gguf")
    assert not list(tmp_path.iterdir())
