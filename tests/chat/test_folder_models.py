"""Models of a folder as panes: what is listed and loaded, and their answers, which are those the sampler gives."""

import shutil
import threading
import time
import weakref

import pytest
import torch
from families import FAMILIES, write_pair
from pico_chat import pico_chat
from safetensors.torch import save_file

from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer
from lite_c2f.backbone.padding import padding_id
from lite_c2f.chat import ChatSettings, answering, folder_models
from lite_c2f.chat.folder_names import folder_model_in
from lite_c2f.chat.panes import AnswerForm, Pane, pane_of, title_of
from lite_c2f.data.encode import encode_chat, encode_prompt, turn_end
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError
from lite_c2f.sampling import Sampling, Stops, sample

QUESTION = {"temperature": 1.2, "seed": 3, "max_tokens": 8}
TEXT = "Tom has 3 apples. How many now?"


@pytest.fixture(scope="module")
def models(tmp_path_factory, pico):
    """Two families, one of them without a chat template, one linked from elsewhere; and what is no model."""
    root = tmp_path_factory.mktemp("models")
    write_pair(root / "pairs", FAMILIES["Qwen2"])
    write_pair(root / "gpt", FAMILIES["GPT-2"])
    folder = root / "models"
    folder.mkdir()
    shutil.copytree(root / "pairs" / "instruct", folder / "Qwen2-tiny")
    (folder / "GPT-2").symlink_to(root / "gpt" / "base")
    (root / "gpt" / "base" / "chat_template.jinja").unlink()
    shutil.copytree(root / "pairs" / "base", folder / ".hidden")
    (folder / "empty").mkdir()
    shutil.copytree(root / "pairs" / "base", folder / "pickled")
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    (folder / "file").write_text("x")
    return folder


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    return pico_chat(pico, tmp_path_factory.mktemp("run"))


@pytest.fixture
def chat(made, models):
    made._loaded.result().folders = folder_models.FolderModels(models, made.config)
    made.actors.reward_model.answers.clear()
    return made


def no_thread_left():
    until = time.monotonic() + 20
    while any(thread.name.startswith("lite_c2f-") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.005)


def sampled(folder, config, chats, **settings):
    """The answer of the batched sampler, and its prompt."""
    model, tokenizer = load_model(str(folder), config), load_tokenizer(str(folder))
    turns = [Turn("human", TEXT)]
    prompt = encode_chat(tokenizer, turns, 999) if chats else encode_prompt(tokenizer, turns, 999)[0]
    sampling = Sampling(settings["max_tokens"], settings["temperature"], seed=settings["seed"])
    eos = end_tokens(model, tokenizer, turn_end(tokenizer, "chat", {}) if chats else None)
    stops = None if chats else Stops(tokenizer, config.model.stop)
    responses = sample(model, [prompt], sampling, eos_ids=eos, stops=stops, pad_id=padding_id(tokenizer))
    return tokenizer, prompt, responses


def test_a_name_is_a_subfolder():
    assert pane_of("folder@a b") == Pane("folder@a b", "folder", source="folder@a b")
    assert title_of("folder@SmolLM2-1.7B") == "SmolLM2-1.7B"
    for name in ("folder@", "folder", "folder@a/b", "folder@..", "folder@.x", "folder@a\\b", f"folder@{'x' * 201}"):
        assert folder_model_in(name) == "", name


def test_models_are_listed_with_their_memory(chat, monkeypatch):
    assert [each.name for each in chat.listed_others()] == ["folder@GPT-2", "folder@Qwen2-tiny"]
    monkeypatch.setattr(chat.folders, "_needs", lambda folder: 2.34 * 2**30)
    monkeypatch.setattr(chat.folders, "_available", lambda: 9.81 * 2**30)
    assert chat.listed_others()[0].label == "GPT-2 (needs about 2.3 GiB, 9.8 GiB free)"
    monkeypatch.setattr(chat.folders, "_needs", lambda folder: 1 / 0)
    assert chat.listed_others(fresh=False)[1].label == "Qwen2-tiny (a model folder)"
    chat._loaded.result().folders = folder_models.FolderModels(None, chat.config)
    assert chat.listed_others() == []
    with pytest.raises(ConfigError, match="--models"):
        folder_models.FolderModels("nowhere", chat.config)


def test_the_memory_is_that_of_the_weights_and_one_answers_cache(chat, models):
    """Qwen2's tiny one, by hand: 2 layers, hidden 64, 4 heads and 2 of keys of 16, MLP 128, in NF4 and float32."""
    vocabulary = len(load_tokenizer(str(models / "Qwen2-tiny")))
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    nf4 = linear * (0.5 + 1 / 64 + 4 / (64 * 256))
    embeddings, cache = 2 * vocabulary * 64 * 4, 2 * 2 * 32 * 4 * 128
    assert chat.folders._needs(models / "Qwen2-tiny") == pytest.approx(nf4 + embeddings + cache, rel=0.02)


@pytest.mark.parametrize(("name", "chats"), [("Qwen2-tiny", True), ("GPT-2", False)])
def test_its_answer_is_the_samplers_beside_the_runs_own(chat, models, name, chats):
    """Prompted by its own template, or without one as the run's base; ended by its own tokens."""
    alone = chat.answer("w1 w2", ["coarse", "fine"], **QUESTION)
    tokenizer, prompt, expected = sampled(models / name, chat.config, chats, **QUESTION)
    key = f"folder@{name}"
    got = chat.answer(TEXT, ["coarse", key, "fine"], **QUESTION, score=True)
    text = tokenizer.decode(expected.text_tokens(0), skip_special_tokens=True).strip()
    assert (got[key].text, got[key].tokens, got[key].finish) == (text, len(expected.tokens[0]), expected.finish[0])
    assert chat.rendered([Turn("human", TEXT)], key, ChatSettings(8)) == tokenizer.decode(prompt)
    assert got[key].ratio is None and got["fine"].ratio == 0.75
    assert chat.answer("w1 w2", ["coarse", "fine"], **QUESTION)["fine"].text == alone["fine"].text
    # its text, encoded by the run's tokenizer, is what the reward model reads
    ids = chat.actors.text_ids(chat.actors.instruct_tokenizer, text)
    assert got[key].reward == len(ids) and chat.actors.reward_model.answers[1][1].text_tokens == ids
    assert chat.listed_others()[["GPT-2", "Qwen2-tiny"].index(name)].label == f"{name} (loaded)"
    no_thread_left()
    assert not chat.folders.loaded.in_batch


def test_a_cut_answer_goes_on(chat, models):
    key = "folder@Qwen2-tiny"
    cut = chat.answer(TEXT, [key], **QUESTION | {"temperature": 0.0})[key]
    if cut.finish == "limit":
        form = AnswerForm(begun=cut.text, drawn=cut.tokens)
        *_, more = chat.stream(TEXT, [key], ChatSettings(12, 0.0, seed=3), form=form)
        assert more.text.startswith(cut.text) and more.tokens <= 12


def test_one_is_in_memory_at_a_time(chat, monkeypatch):
    hold, step = threading.Event(), answering.AnswerRows.step
    monkeypatch.setattr(answering.AnswerRows, "step", lambda rows: time.sleep(0.005) if hold.is_set() else step(rows))
    hold.set()
    first = chat.stream(TEXT, ["folder@Qwen2-tiny"], ChatSettings(8, seed=3))
    next(first)
    replies = chat.answer("w1", ["folder@GPT-2"], max_tokens=8)
    assert "'Qwen2-tiny' is answering, and 'GPT-2' would take its place" in replies["folder@GPT-2"].message
    former = chat.folders.loaded
    weights = weakref.ref(former.multi_model.models[0])
    second = chat.stream(TEXT, ["folder@Qwen2-tiny", "fine"], ChatSettings(8, seed=3))  # of it more may be asked
    hold.clear()
    *_, last = first
    assert {reply.pane: reply for reply in second}["folder@Qwen2-tiny"].text == last.text
    assert chat.answer(TEXT, ["folder@GPT-2"], max_tokens=8)["folder@GPT-2"].finish != "error"
    assert former.multi_model is None and weights() is None
    assert chat.folders.loaded.name == "folder@GPT-2"


def test_what_cannot_answer_fails_alone_in_one_line(chat, models, monkeypatch):
    save_file({"a": torch.ones(1)}, models / "pickled" / "other.safetensors")
    two = chat.answer(TEXT, ["folder@GPT-2", "folder@Qwen2-tiny"], max_tokens=8)
    assert two["folder@GPT-2"].finish != "error" and "one at a time" in two["folder@Qwen2-tiny"].message
    cases = {"folder@gone": "not in the folder", "folder@.hidden": "", "folder@pickled": "cannot load the model"}
    try:
        for key, words in cases.items():
            if folder_model_in(key):
                replies = chat.answer("w1", [key, "fine"], max_tokens=8)
                assert words in replies[key].message and "\n" not in replies[key].message
                assert replies[key].finish == "error" and replies["fine"].tokens == 8
            else:
                with pytest.raises(ConfigError):
                    chat.answer("w1", [key])
    finally:
        (models / "pickled" / "other.safetensors").unlink()
    monkeypatch.setattr(chat.folders, "_available", lambda: 1000.0)
    monkeypatch.setattr(chat.folders, "_needs", lambda folder: 3 * 2**29)
    chat.folders.loaded = None
    message = chat.answer("w1", ["folder@GPT-2"], max_tokens=8)["folder@GPT-2"].message
    assert "'GPT-2' needs about 1.5 GiB, 0.0 MiB are free; expected as much free memory" in message
    assert chat.folders.loaded is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("token*", "no tokenizer with a vocabulary"),
        ("*.safetensors", "cannot load the model (Error while deserializing"),
    ],
)
def test_a_copy_that_is_not_whole_is_named(chat, models, files, words):
    """Without its tokenizer's files Transformers makes one of a single special token; or with half of its weights."""
    copy = shutil.copytree(models / "Qwen2-tiny", models / "partial")
    try:
        for file in copy.glob(files):
            half = file.read_bytes()[: file.stat().st_size // 2]
            file.unlink()
            if file.suffix == ".safetensors":
                file.write_bytes(half)
        replies = chat.answer(TEXT, ["folder@partial", "fine"], max_tokens=8)
        assert words in replies["folder@partial"].message and "'" + str(copy) in replies["folder@partial"].message
        assert replies["folder@partial"].finish == "error" and replies["fine"].tokens == 8
    finally:
        shutil.rmtree(copy)


def test_its_batch_has_a_limit_and_its_context_too(chat):
    panes = [Pane(key, "folder", source="folder@GPT-2") for key in "abc"]
    chat.answer(TEXT, panes[:1], max_tokens=8)
    chat.folders.loaded.max_rows = 2
    replies = chat.answer(TEXT, panes, max_tokens=8)
    assert [replies[key].finish == "error" for key in "abc"] == [False, False, True]
    assert "2 answers of that model; expected fewer at once" in replies["c"].message
    chat.folders.loaded.context = 39  # 7 tokens beside the 32 of a prompt
    assert "max_tokens=8" in chat.answer(TEXT, panes[:1], max_tokens=8)["a"].message
    chat.folders.loaded.multi_model = None  # as where another question has replaced it since
    assert "took its place" in chat.answer(TEXT, panes[:1], max_tokens=7)["a"].message
    chat.folders.loaded = None


def test_another_takes_its_place_while_the_runs_actors_still_answer(chat, monkeypatch):
    hold, step, own = threading.Event(), answering.AnswerRows.step, chat.actors.multi_model

    def step_others(rows):
        if hold.is_set() and rows.multi_model is own:
            time.sleep(0.005)
        else:
            step(rows)

    monkeypatch.setattr(answering.AnswerRows, "step", step_others)
    hold.set()
    local = chat.stream("w1", ["fine"], ChatSettings(8))
    next(local)
    for name in ("folder@Qwen2-tiny", "folder@GPT-2"):
        assert chat.answer(TEXT, [name], max_tokens=8)[name].finish != "error"
    assert not local.finished and chat.folders.loaded.name == "folder@GPT-2"
    hold.clear()
    *_, last = local
    assert last.tokens == 8


def test_loading_disturbs_no_answer_and_is_not_waited_for(chat, monkeypatch):
    """While Transformers makes a model, the default type of the whole process is that model's."""
    before = chat.answer("w1 w2", ["coarse", "fine"], **QUESTION, score=True)
    try:
        torch.set_default_dtype(torch.bfloat16)
        meanwhile = chat.answer("w1 w2", ["coarse", "fine"], **QUESTION, score=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [(reply.text, reply.reward) for reply in meanwhile.values()] == [
        (reply.text, reply.reward) for reply in before.values()
    ]
    with chat.folders._lock:
        assert {each.label.partition(" (")[2] for each in chat.listed_others()} == {"a model folder)"}
