"""Actors of other moments and runs: what is offered, what is read from the files, and their answers beside the rest."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from lite_c2f.backbone.adapters import write_adapter
from lite_c2f.backbone.load import load_tokenizer
from lite_c2f.backbone.multi_model import MultiModel, residue_of
from lite_c2f.backbone.residue_file import decoder_prefix, published_residue, read_residue
from lite_c2f.backbone.roles import Roles
from lite_c2f.chat import Chat, engine, loaded, other_residues
from lite_c2f.chat.offers import find_offers
from lite_c2f.chat.other_actors import OtherActor, name_of, other_actor_in
from lite_c2f.chat.other_residues import OtherResidues
from lite_c2f.chat.panes import Pane, pane_of, title_of
from lite_c2f.chat.server import build
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora
from lite_c2f.errors import C2FError, ConfigError, ModelError
from lite_c2f.runs.model_pair import ModelPair

INPUTS = {"model.base: config.json": "1 bytes, a", "model.instruct: config.json": "1 bytes, b", "data": "x"}
SETTINGS = ("data.max_prompt_tokens=16", "coarse.length.max=32", "coarse.length.start=8", "evaluation.max_tokens=32")
SETTINGS += ("fine.max_tokens=32", "data.max_answer_tokens=16", "lora.r=4", "lora.alpha=8")
QUESTION = {"temperature": 1.2, "seed": 3, "max_tokens": 16}


def random_adapters(quantized, seed, lora, std=0.2):
    torch.manual_seed(seed)
    roles = Roles(quantized(), lora, ("policy",))
    with torch.no_grad():
        for parameter in roles.adapter_parameters("policy"):
            parameter.normal_(std=std)
    return roles


def publish(roles, folder):
    folder.mkdir(parents=True)
    write_adapter(roles.model, "policy", folder, "the base")


def make_run(folder, settings=(), inputs=INPUTS):
    (folder / "coarse").mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"models": {"base": "b", "instruct": "i"}, "seconds": {}, "inputs": inputs})
    )
    (folder / "config.yaml").write_text(load_config({}, [*SETTINGS, *settings]).to_yaml())
    return folder


def finish(run, ratio=0.75, **merge):
    (run / "coarse" / "metrics.json").write_text("{}")
    (run / "fine" / "model").mkdir(parents=True)
    (run / "fine" / "model" / "config.json").write_text("{}")
    (run / "fine" / "merge.json").write_text(json.dumps({"ratio": ratio, **merge}))


@pytest.fixture(scope="module")
def policies(quantized):
    """Three trained policies: of this run the last and the best one, and one of another rank, scale and layers."""
    return {
        "last": random_adapters(quantized, 0, Lora(r=4, alpha=8)),
        "best": random_adapters(quantized, 1, Lora(r=4, alpha=8)),
        "other": random_adapters(
            quantized, 2, Lora(r=6, alpha=3, rslora=True, target_modules=("q_proj", "down_proj")), 0.6
        ),
    }


@pytest.fixture
def runs(policies, tmp_path):
    """This run with its best and its last policy and a checkpoint; one that is finished; one that is trained."""
    mine = make_run(tmp_path / "mine")
    publish(policies["last"], mine / "coarse" / "adapter")
    publish(policies["best"], mine / "coarse" / "best" / "adapter")
    (mine / "coarse" / "best" / "best.json").write_text('{"step": 40}')
    finish(mine)
    sibling = make_run(tmp_path / "sibling")
    publish(policies["other"], sibling / "coarse" / "adapter")
    finish(sibling, 0.5)
    training = make_run(tmp_path / "training")
    for run, step in ((mine, 3), (training, 0), (training, 12)):
        checkpoint = run / "coarse" / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        tensors = load_file(mine / "coarse" / "best" / "adapter" / "adapter_model.safetensors")
        tensors = {f"policy.{name}": tensor for name, tensor in tensors.items()}
        save_file(tensors | {"optimizer.policy.0.step": torch.ones(1)}, checkpoint / "tensors.safetensors")
    for place, run in enumerate((training, sibling)):  # the one that changed last is listed first
        os.utime(run / "run.json", (1000 - place, 1000 - place))
    return tmp_path


@pytest.fixture
def others(runs, policies, quantized):
    own = policies["last"].model
    made = MultiModel([own, quantized()], residue_of(own, "policy"))
    return OtherResidues(runs / "mine", load_config(runs / "mine" / "config.yaml"), own, made)


@pytest.fixture
def chat(runs, policies, pico, monkeypatch):
    """The chat of this run with pico models; only its own residue is not read from the run."""
    config, models = load_config(runs / "mine" / "config.yaml"), ModelPair(str(pico["base"]), str(pico["instruct"]))
    for module in (engine, loaded):
        monkeypatch.setattr(module, "open_run", lambda run: (config, models))

    def make(policy="last"):
        reward = SimpleNamespace(tokenizer=load_tokenizer(models.base))
        monkeypatch.setattr(loaded, "load_coarse", lambda *_: (policies[policy], reward))
        made = Chat(runs / "mine")
        made.actors._eos_ids = [[] for _ in made.actors._eos_ids]  # a random model ends its answers anywhere
        return made

    return make


@pytest.mark.parametrize(
    ("name", "other", "title"),
    [
        ("coarse@best", OtherActor("coarse", "best", ""), "Coarse Actor, best policy"),
        ("coarse@step-40", OtherActor("coarse", "step-40", ""), "Coarse Actor after update 40"),
        ("coarse@last:a b:1", OtherActor("coarse", "last", "a b:1"), "Coarse Actor of a b:1, last policy"),
        ("fine@merged:0.5", OtherActor("fine", "merged", "0.5"), "Fine Actor of 0.5"),
    ],
)
def test_a_name_says_which_actor_of_which_training(name, other, title):
    assert other_actor_in(name) == other and name_of(other) == name and title_of(name) == title
    assert pane_of(name) == Pane(name, other.actor, None, name)


@pytest.mark.parametrize(
    "name",
    [
        *("coarse@0.5", "coarse@Best", "coarse@step-", "coarse@step-07", "coarse@step--1", "fine@merged", "fine@best"),
        *("base@best", "coarse@best:", "coarse@best:../x", "coarse@best:..", "coarse@best:/etc", "coarse@best:a\\b"),
        *("coarse@best:a\nb", f"coarse@best:{'x' * 201}"),
    ],
)
def test_other_names_are_no_panes(name):
    assert other_actor_in(name) is None
    with pytest.raises(ConfigError, match="pane"):
        pane_of(name)


def test_what_is_offered(runs):
    """Three of this run, then those of the run that changed last, the newest first, then those of the finished one."""
    make_run(runs / "elsewhere", inputs=INPUTS | {"model.base: config.json": "2 bytes, c"})
    make_run(runs / "asked-otherwise", ["model.prompt_template='Q: {prompt} A:'"])
    make_run(runs / "damaged")
    (runs / "damaged" / "config.yaml").write_text("no: such: yaml")
    for name in ("elsewhere", "asked-otherwise", "damaged"):
        shutil.copytree(runs / "training" / "coarse", runs / name / "coarse", dirs_exist_ok=True)
    offers = find_offers(runs / "mine", load_config(runs / "mine" / "config.yaml"))
    assert [offer.name for offer in offers] == [
        "coarse@best",
        "coarse@last",
        "coarse@step-3",
        "coarse@step-12:training",
        "coarse@step-0:training",
        "coarse@last:sibling",
        "fine@merged:sibling",
    ]
    assert [offer.name for offer in offers if offer.residue is None] == ["coarse@last"]  # it is this run's Coarse Actor
    assert [offer.ratio for offer in offers] == [None] * 6 + [0.5]
    shutil.rmtree(runs / "sibling" / "fine")
    finish(runs / "sibling", layer_ratios=[["*", 1.0]])
    shutil.rmtree(runs / "mine" / "coarse" / "best")
    names = [offer.name for offer in find_offers(runs / "mine", load_config({}, SETTINGS))]
    assert "fine@merged:sibling" not in names and names[0] == "coarse@step-3"  # one policy is no choice


def test_the_list_says_what_each_adds(others):
    """Of q_proj (32 x 32) and down_proj (32 x 48) in two layers at rank 6: 2 * 6 * (64 + 80) numbers of 4 bytes."""
    labels = {listed.name: listed.label for listed in others.listed()}
    assert labels["coarse@best"] == "Coarse Actor, best policy (after update 40, adds 0.1 MiB)"
    assert labels["coarse@last"] == "Coarse Actor, last policy (the one in the Coarse pane)"
    assert labels["coarse@step-12:training"] == "Coarse Actor of training after update 12 (checkpoint, adds 0.1 MiB)"
    assert labels["fine@merged:sibling"] == "Fine Actor of sibling (at its ratio 0.5, adds 0.1 MiB)"
    offers = others.offers()
    assert others._bytes(offers["fine@merged:sibling"].residue) == 4 * 2 * 6 * (64 + 80)
    others.load(offers["coarse@best"])
    assert "(after update 40, loaded)" in others.listed()[0].label


@pytest.mark.parametrize("policy", ["best", "other"])
def test_a_file_gives_the_bits_that_peft_gives(runs, policies, policy):
    folder = runs / {"best": "mine/coarse/best/adapter", "other": "sibling/coarse/adapter"}[policy]
    model = policies[policy].model
    expected, read = residue_of(model, "policy"), read_residue(published_residue(folder), decoder_prefix(model))
    assert expected.keys() == read.keys() and len(read) == {"best": 14, "other": 4}[policy]
    assert all(torch.equal(a, b) for name in read for a, b in zip(expected[name], read[name], strict=True))


def test_a_checkpoint_is_scaled_as_its_run_trains(others, policies):
    read = others.load(others.offers()["coarse@step-12:training"])
    expected = residue_of(policies["best"].model, "policy")
    assert all(torch.equal(read[name].b, expected[name].b) for name in expected)


def test_few_are_kept_and_a_replaced_file_is_read_anew(others, runs, monkeypatch):
    monkeypatch.setattr(other_residues, "MAX_LOADED", 2)
    offers = others.offers()
    names = ("coarse@best", "coarse@step-3", "coarse@best", "coarse@last:sibling")
    kept = [others.load(offers[name]) for name in names]
    assert kept[0] is kept[2] and others.load(offers["coarse@best"]) is kept[0]
    assert others.load(offers["coarse@last:sibling"]) is others.load(offers["fine@merged:sibling"])  # one file
    assert others.load(offers["coarse@step-3"]) is not kept[1]  # it was not used for longest
    assert others.load(offers["coarse@last"]) is None
    os.utime(runs / "sibling/coarse/adapter/adapter_model.safetensors", (1, 1))
    assert others.load(offers["coarse@last:sibling"]) is not kept[3]


@pytest.mark.parametrize("damage", ["gone", "cut", "not finite", "another base", "dora"])
def test_a_residue_that_cannot_be_used_is_refused_in_a_line(others, runs, damage):
    folder = runs / "sibling" / "coarse" / "adapter"
    file, offer = folder / "adapter_model.safetensors", others.offers()["coarse@last:sibling"]
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "dora":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
        assert "coarse@last:sibling" not in others.offers()
        return
    else:
        tensors[name] = torch.full_like(tensors[name], torch.nan) if damage == "not finite" else torch.ones(6, 31)
        save_file(tensors, file)
    expected = {"gone": "is gone", "cut": "adapter_model", "not finite": "is not finite", "another base": r"\(32, 32\)"}
    with pytest.raises(ModelError, match=expected[damage]) as error:
        others.load(offer)
    assert "\n" not in str(error.value) and str(runs) not in str(error.value)  # a visitor reads it


def test_memory_is_asked_first(others, monkeypatch):
    monkeypatch.setattr(other_residues, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(other_residues, "read_residue", lambda *_: pytest.fail("it was read"))
    with pytest.raises(C2FError, match="best policy' needs 0 MiB, 0 are free"):
        others.load(others.offers()["coarse@best"])


def test_a_pane_answers_with_its_own_residue_beside_the_rest(chat, runs):
    made = chat()
    panes = ["coarse", "fine", "baseline", "base"]
    plain = made.answer("w1 w2", panes, **QUESTION)
    both = made.answer("w1 w2", [*panes, "coarse@best", "coarse@last:sibling", "fine@merged:sibling"], **QUESTION)
    assert {key: both[key].text for key in panes} == {key: plain[key].text for key in panes}
    best = chat("best").answer("w1 w2", panes, **QUESTION)["coarse"]
    assert (both["coarse@best"].text, both["coarse@best"].tokens) == (best.text, best.tokens)
    assert len({reply.text for reply in both.values()}) == 7
    assert (both["fine@merged:sibling"].ratio, both["coarse@best"].ratio) == (0.5, None)
    assert made.answer("w1 w2", ["coarse@last"], **QUESTION)["coarse@last"].text == plain["coarse"].text


def test_a_pane_whose_files_are_gone_fails_alone_in_a_line(chat, runs):
    made = chat()
    assert [listed.name for listed in made.listed_others()][:2] == ["coarse@best", "coarse@last"]
    shutil.rmtree(runs / "mine" / "coarse" / "best")
    replies = made.answer("w1", ["coarse", "coarse@best", "fine@merged:sibling"], **QUESTION)
    assert (replies["coarse"].finish, replies["fine@merged:sibling"].finish) == ("limit", "limit")
    assert replies["coarse@best"].finish == "error"
    assert replies["coarse@best"].message.startswith("'Coarse Actor, best policy' is not there (any more); expected")


def test_the_server_has_them_as_models(chat, runs):
    made = chat()
    expected = made.answer("w1 w2", ["coarse@best"], **QUESTION)["coarse@best"].text
    body = QUESTION | {"model": "coarse@best", "messages": [{"role": "user", "content": "w1 w2"}]}
    with TestClient(build(made)) as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert (
            listed[:1] == ["coarse"]
            and "fine@merged:sibling" in listed
            and client.get("/v1/models/coarse@best").is_success
        )
        answered = client.post("/v1/chat/completions", json=body)
        assert answered.json()["choices"][0]["message"]["content"] == expected
        shutil.rmtree(runs / "mine" / "coarse" / "best")
        for response in (client.post("/v1/chat/completions", json=body), client.get("/v1/models/coarse@step-7")):
            assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
