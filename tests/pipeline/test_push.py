"""Uploads to a stand-in for the hub: what arrives byte by byte, what stays here, and every refusal in one line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import yaml
from hub_stand_in import Hub
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from lite_c2f.config.loading import load_config
from lite_c2f.fine.merge import merge
from lite_c2f.pipeline.push import without_places
from lite_c2f.runs.manifest import save_config, save_manifest
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.storage.files import write_json

SECRET = "alice-7731"  # in every path and text that is private
ACTORS = {
    "base": {"reward": 0.0, "tokens": 30.5, "eos": 1.0},
    "coarse": {"reward": 1.25, "tokens": 61.0, "eos": 0.875},
    "fine": {"reward": 1.0, "tokens": 44.0, "eos": 1.0},
}
PRIVATE = ("log.txt", "coarse/samples.jsonl", "evaluation/responses.jsonl", "votes.jsonl", "fine/model/training.log")


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    """A run of pico models with all stages, in a folder whose name must not be published, like its texts."""
    home = tmp_path_factory.mktemp(SECRET)
    run, models = home / "run", home / "models"
    base, instruct = (Path(shutil.copytree(pico[name], models / f"my-{name}")) for name in ("base", "instruct"))
    settings = [
        "model.base=mistral-org/base-7b",
        f"model.instruct={instruct}",
        "lora.r=4",
        "lora.alpha=8",
        f"data.preferences=[Anthropic/hh-rlhf, {home}/pairs.jsonl]",
        f"run.dir={run}",
    ]
    config = load_config({}, settings)
    save_config(run, config)
    save_manifest(run, config, ModelPair(str(base), str(instruct)), {})
    adapter = Path(shutil.copytree(pico["adapter"], run / "coarse" / "adapter"))
    recorded = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", recorded | {"base_model_name_or_path": str(base)})
    write_json(run / "coarse" / "metrics.json", {"updates": 12})
    merge(adapter, base, instruct, run / "fine" / "model", ratio=0.75, report=run / "fine" / "merge.json")
    tokenizer = run / "fine" / "model" / "tokenizer_config.json"
    write_json(tokenizer, json.loads(tokenizer.read_text()) | {"name_or_path": f"/home/{SECRET}/tuned/mine"})
    write_json(run / "evaluation" / "settings.json", {"settings": {"prompts": 64, "max_tokens": 96, "temperature": 0}})
    summary = {"reward_model": {"accuracy": 0.625}, "actors": ACTORS, "wins": {"fine over instruct": {"prompts": 57}}}
    write_json(run / "summary.json", summary)
    for name in PRIVATE:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"what {SECRET} wrote")
    return run


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, with a token that may write; no waiting between attempts."""
    hub = Hub()
    hub.cards["mistral-org/base-7b"] = {"license": "apache-2.0"}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", "writer")
    yield hub
    hub.close()


def card_of(files):
    """(metadata, text) of README.md."""
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_adapter_arrives_whole_with_a_card(call, hub, made):
    code, out, err = call("push", made, "--to", "me/coarse", "--private")
    assert code == 0, err
    assert f"uploaded: {hub.url}/me/coarse/commit/1" in out
    repo = hub.repos["me/coarse"]
    files = repo["files"]
    assert repo["private"] and repo["commits"] == ["Upload adapter of run with lite-c2f"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    weights = made / "coarse" / "adapter" / "adapter_model.safetensors"
    assert files["adapter_model.safetensors"] == weights.read_bytes()
    recorded = json.loads((weights.parent / "adapter_config.json").read_text())
    assert json.loads(files["adapter_config.json"]) == recorded | {"base_model_name_or_path": "my-base"}
    metadata, text = card_of(files)
    assert metadata["base_model"] == ["mistral-org/base-7b"] and metadata["base_model_relation"] == "adapter"
    assert metadata["datasets"] == ["Anthropic/hh-rlhf"] and metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "peft" and {"lora", "lite_c2f"} <= set(metadata["tags"])
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    assert index["name"] == "coarse"
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"reward": 1.25, "tokens": 61.0, "eos": 0.875}
    assert result["dataset"] == {"name": "held-out prompts of Anthropic/hh-rlhf, pairs.jsonl", "type": "local"}
    for words in (
        "57 prompts of Anthropic/hh-rlhf, pairs.jsonl that were held out from training, greedy sampling",
        "the run's own reward model, which ranks 62.5% of held-out pairs right",
        "own design",
        "pairs.jsonl (not on the hub)",
        "12 updates",
        "| coarse | 1.250 | 61.000 | 0.875 |",
    ):
        assert words in text, words


def test_nothing_private_goes_up(call, hub, made):
    for what in ("adapter", "fine", "gguf"):
        assert call("push", made, "--to", f"me/{what}", "--what", what)[0] == 0
        for name, content in hub.repos[f"me/{what}"]["files"].items():
            for private in (SECRET, str(made), f"{Path.home()}/", "/home/"):
                assert private.encode() not in content, (what, name, private)


def test_the_fine_actor_arrives_and_loads_as_it_is_here(call, hub, made, tmp_path):
    """Names and shapes of the tensors are those of Transformers' own class; PEFT finds every tensor of the adapter."""
    code, _, err = call("push", made, "--to", "me/fine", "--what", "fine")
    assert code == 0 and "left out, no part of a model: training.log" in err
    files = hub.repos["me/fine"]["files"]
    folder = made / "fine" / "model"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert files[name] == (folder / name).read_bytes(), name
    assert json.loads(files["tokenizer_config.json"])["name_or_path"] == "mine"
    assert json.loads(files["merge.json"])["ratio"] == 0.75
    metadata, text = card_of(files)
    assert metadata["library_name"] == "transformers" and "license" not in metadata
    assert "the instruct model my-instruct plus 0.75 times the residue" in text
    assert call("push", made, "--to", "me/coarse", "--license", "mit")[0] == 0
    metadata, text = card_of(hub.repos["me/coarse"]["files"])
    assert metadata["license"] == "mit" and "mit. See also that of mistral-org/base-7b." in text

    for repo in ("fine", "coarse"):
        (tmp_path / repo).mkdir()
        for name, content in hub.repos[f"me/{repo}"]["files"].items():
            (tmp_path / repo / name).write_bytes(content)
    arrived = {name: tensor.shape for name, tensor in load_file(tmp_path / "fine" / "model.safetensors").items()}
    bare = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "fine"))
    assert arrived == {name: tensor.shape for name, tensor in bare.state_dict().items()}
    wrapped = PeftModel.from_pretrained(bare, tmp_path / "coarse")
    names = {name for name, _ in wrapped.named_parameters() if "lora_" in name}
    sent = load_file(tmp_path / "coarse" / "adapter_model.safetensors")
    assert {name.replace(".default", "") for name in names} == set(sent)
    for name in names:
        assert wrapped.get_parameter(name).equal(sent[name.replace(".default", "")])


def test_the_gguf_adapter_arrives_with_a_modelfile(call, hub, made, tmp_path):
    code, _, err = call("push", made, "--to", "me/gguf", "--what", "gguf")
    assert code == 0, err
    files = hub.repos["me/gguf"]["files"]
    assert set(files) == {"README.md", "Modelfile", "residue.gguf"}
    (tmp_path / "residue.gguf").write_bytes(files["residue.gguf"])
    assert len(gguf.GGUFReader(tmp_path / "residue.gguf").tensors) == 2 * 2 * 7  # A and B, 2 layers, 7 linear layers
    metadata, text = card_of(files)
    assert not {"model-index", "model_name"} & set(metadata) and "nothing was measured with this file" in text
    assert "--lora-scaled residue.gguf:0.75" in text


def test_a_dry_run_asks_nobody(call, hub, made):
    code, out, _ = call("push", made, "--to", "me/coarse", "--dry-run")
    size = (made / "coarse" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert code == 0 and f"{size:,} bytes  adapter_model.safetensors" in out
    assert "model-index:" in out and "nothing was uploaded" in out and SECRET not in out
    assert hub.requests == []


def test_an_upload_that_breaks_off_is_continued(call, hub, run):
    """Of two weight files one arrives; nothing is visible. The same command sends the other, in one commit."""
    folder = run / "fine" / "model"
    (folder / "more.safetensors").write_bytes(b"second file")
    hub.broken_after = 1
    code, _, err = call("push", run, "--to", "me/fine", "--what", "fine")
    assert code == 2 and "broke off" in err and "same command" in err.splitlines()[-1]
    assert hub.repos["me/fine"]["files"] == {} and len(hub.stored) == 1
    hub.broken_after, hub.requests[:] = None, []
    assert call("push", run, "--to", "me/fine", "--what", "fine")[0] == 0
    assert len([path for method, path in hub.requests if method == "PUT"]) == 1
    assert len(hub.repos["me/fine"]["commits"]) == 1
    assert hub.repos["me/fine"]["files"]["more.safetensors"] == b"second file"


def test_weights_of_an_earlier_upload_are_removed(call, hub, made):
    files = {"model-00002-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    repo = hub.add("me/fine")
    repo["files"] = files
    assert call("push", made, "--to", "me/fine", "--what", "fine")[0] == 0
    there = hub.repos["me/fine"]["files"]
    assert there["notes.md"] == b"mine" and not set(files) - {"notes.md"} & set(there)
    assert len(repo["commits"]) == 1


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("reader", "the token may not write to 'me/coarse': Forbidden"),
        ("nobody", "the hub does not accept the token"),
        (None, "no token of the hub"),
    ],
)
def test_tokens_that_may_not_write(call, hub, made, monkeypatch, token, words):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    code, _, err = call("push", made, "--to", "me/coarse")
    assert code == 2 and words in err and err.count("\n") == 1 and hub.repos == {}


def test_a_token_from_a_file(call, hub, made, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("writer\n")
    assert call("push", made, "--to", "me/coarse", "--token-file", tmp_path / "token")[0] == 0
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "gone"):
        code, _, err = call("push", made, "--to", "me/coarse", "--token-file", tmp_path / name)
        assert code == 2 and "has no token" in err


@pytest.mark.parametrize(
    "name", ["coarse", "datasets/me/coarse", "https://huggingface.co/me/coarse", "me/co arse", "me/"]
)
def test_names_that_are_no_model_repo(call, hub, made, name):
    code, _, err = call("push", made, "--to", name)
    assert code == 2 and "expected OWNER/NAME" in err and err.count("\n") == 1 and hub.requests == []


def test_repos_that_hold_something_else(call, hub, made):
    hub.add("me/data", "dataset")
    hub.add("me/public", private=False)
    hub.add("me/other", **{"config.json": b"{}"})
    for name, words in (
        ("data", "'me/data' is a dataset repo"),
        ("public", "exists and is public"),
        ("other", "holds what `--what fine` uploads"),
    ):
        code, _, err = call("push", made, "--to", f"me/{name}", "--private" if name == "public" else "--what=adapter")
        assert code == 2 and words in err and err.count("\n") == 1
        assert hub.repos[f"me/{name}"]["commits"] == []


def test_stages_that_are_not_there(call, hub, run):
    (run / "coarse" / "metrics.json").unlink()
    code, _, err = call("push", run, "--to", "me/coarse")
    assert code == 2 and "has no coarse stage, which `--what adapter` uploads" in err
    shutil.rmtree(run / "fine")
    assert "has no fine stage" in call("push", run, "--to", "me/fine", "--what", "fine")[2]
    assert "is no run directory" in call("push", run / "coarse", "--to", "me/coarse")[2]
    assert hub.requests == []


def test_damaged_stages_are_refused_in_one_line(call, hub, run):
    (run / "coarse" / "adapter" / "adapter_model.safetensors").unlink()
    (run / "fine" / "model" / "tokenizer_config.json").write_text("{")
    for what, words in (("adapter", "has no weights"), ("fine", "tokenizer_config.json' is not JSON")):
        code, _, err = call("push", run, "--to", "me/it", "--what", what)
        assert code == 2 and words in err and err.count("\n") == 1
    (run / "fine" / "merge.json").unlink()
    code, _, err = call("push", run, "--to", "me/it", "--what", "fine")
    assert code == 2 and "merge.json" in err and hub.requests == []


def test_files_in_folders_within_the_model_stay_here(call, hub, run):
    for name in ("old/step-5.safetensors", "LICENSES/mine.txt"):
        (run / "fine" / "model" / name).parent.mkdir()
        (run / "fine" / "model" / name).write_text(SECRET)
    assert call("push", run, "--to", "me/fine", "--what", "fine")[0] == 0
    assert not [name for name in hub.repos["me/fine"]["files"] if "/" in name]


def test_a_home_of_one_part_does_not_change_hub_names(call, hub, made, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/base-7b"))
    assert call("push", made, "--to", "me/coarse")[0] == 0
    assert card_of(hub.repos["me/coarse"]["files"])[0]["base_model"] == ["mistral-org/base-7b"]


def test_a_network_that_is_down(call, hub, made, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, err = call("push", made, "--to", "me/coarse")
    assert code == 2 and "broke off (ConnectError" in err and err.count("\n") == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = call("push", made, "--to", "me/coarse")
    assert code == 2 and "HF_HUB_OFFLINE is set" in err


def test_known_paths_within_texts_and_unknown_ones_alone():
    assert without_places("\\\\server\\alice\\small", {}) == "small"
    content = {"a": ["/srv/x/y", "see '/home/me/run': done", "</s>", "/s", 1.0], "/srv/x/y": None}
    assert without_places(content, {"/home/me/run": "run"}) == {
        "a": ["y", "see 'run': done", "</s>", "/s", 1.0],
        "/srv/x/y": None,
    }
