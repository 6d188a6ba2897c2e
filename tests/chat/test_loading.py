"""Questions asked before the models are there, and while those of one pane are loaded."""

import contextlib
import threading
import time

import pytest
from pico_chat import pico_chat

from lite_c2f.chat import Chat, ChatSettings, engine, folder_models
from lite_c2f.chat.panes import pane_of
from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.runs.model_pair import ModelPair

TEXT = "w1 w2 w3"


@pytest.fixture(scope="module")
def loaded(pico, tmp_path_factory):
    """A chat whose models are those of the others here."""
    return pico_chat(pico, tmp_path_factory.mktemp("run"))


@pytest.fixture
def chat(loaded, monkeypatch):
    """A chat that loads nothing by itself: `load` takes the models of another one, once `may_load` is set."""
    models = ModelPair(loaded.config.model.base, loaded.config.model.instruct)
    monkeypatch.setattr(engine, "open_run", lambda run: (loaded.config, models))
    made = Chat(loaded.run, wait=False)
    made.may_load = threading.Event()

    def load():
        made._step = "base model"
        assert made.may_load.wait(20)
        answering = loaded._loaded.result()
        return type(answering)(answering.actors, answering.folders, made.servers, made._questions)

    made._load = load
    return made


@contextlib.contextmanager
def loading(chat):
    """Another thread loads the models; they are there at the end."""
    thread = threading.Thread(target=chat.load)
    thread.start()
    try:
        yield
    finally:
        chat.may_load.set()
        thread.join()


def until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_question_waits_for_the_models_and_is_then_answered(chat, loaded):
    assert not chat.is_loaded and chat.loading == "the models are being loaded" and chat.listed_others() == []
    assert chat.context == loaded.context and chat.ratio == 0.75
    settings = ChatSettings(8, seed=3)
    with loading(chat):
        until(lambda: chat.loading == "the models are being loaded: base model")
        stream = chat.stream(TEXT, ["coarse", "fine"], settings, score=True)
        assert stream.awaited == chat.loading and stream.poll() == [] and chat.busy() == (0, 1)
        still_loading = time.perf_counter()
    got = {reply.pane: reply for reply in stream}
    assert chat.is_loaded and chat.loading == stream.awaited == ""
    expected = loaded.answer(TEXT, ["coarse", "fine"], score=True, max_tokens=8, seed=3)
    for key, reply in expected.items():
        assert (got[key].text, got[key].reward, got[key].ratio) == (reply.text, reply.reward, reply.ratio)
    assert got["fine"].first_token_s > 0
    assert stream._question.submitted_at > still_loading  # an answer's time is counted from when it could begin


@pytest.mark.parametrize("pane", ["server@127.0.0.1:8000/llama", "folder@big"])
def test_tokens_of_other_models_are_not_known(loaded, pane):
    with pytest.raises(ConfigError, match=f"tokens of '{pane}'"):
        loaded.token_texts(pane)
    with pytest.raises(ConfigError, match="such as coarse"):
        loaded.encoded([Turn("human", TEXT)], pane, ChatSettings(8))


def test_what_is_asked_wrongly_is_refused_at_once(chat):
    with pytest.raises(ConfigError, match="max_tokens=5000"):
        chat.stream(TEXT, ["fine"], ChatSettings(5000))
    assert chat.busy() == (0, 0)


def test_stopping_before_the_models_are_there_ends_answers_at_once(chat):
    one, both = (chat.stream(TEXT, ["coarse", "fine"], ChatSettings(8)) for _ in range(2))
    one.stop("fine")
    both.stop()
    assert {reply.pane: (reply.finish, reply.text) for reply in one.poll()} == {"fine": ("stopped", "")}
    assert {reply.pane: reply.finish for reply in both} == {"coarse": "stopped", "fine": "stopped"}
    assert one.unfinished == {"coarse"} and not one.finished and both.finished
    assert chat.busy() == (0, 1)  # and nobody waits for the one that has ended
    with loading(chat):
        pass
    assert {reply.pane: reply.finish for reply in one}["coarse"] == "limit"
    until(lambda: chat.busy() == (0, 0))


def test_a_server_that_ends_keeps_no_reader_waiting(chat):
    streams = [chat.stream(TEXT, ["coarse", "fine"], ChatSettings(8), score=True) for _ in range(2)]
    chat.end_waiting("the server has ended")
    for stream in streams:
        assert [(reply.finish, reply.message) for reply in stream] == [("error", "the server has ended")] * 2
    with loading(chat):
        pass
    until(lambda: chat.busy() == (0, 0))


def test_a_closed_page_leaves_nothing(chat):
    stream = chat.stream(TEXT, ["fine"], ChatSettings(8), score=True)
    del stream
    with loading(chat):
        pass
    assert chat.answer(TEXT, ["fine"], max_tokens=4)["fine"].tokens == 4
    until(lambda: chat.busy() == (0, 0))


def test_models_that_cannot_be_loaded_end_every_question_with_the_reason(chat):
    def fail():
        assert chat.may_load.wait(20)
        raise ModelError("no such weights")

    chat._load = fail
    stream = chat.stream(TEXT, ["coarse", "fine"], ChatSettings(8), score=True)
    chat.may_load.set()
    with pytest.raises(ModelError, match="no such weights"):
        chat.load()
    assert {reply.pane: (reply.finish, reply.message) for reply in stream} == {
        "coarse": ("error", "no such weights"),
        "fine": ("error", "no such weights"),
    }
    assert not chat.is_loaded and chat.loading == ""
    with pytest.raises(ModelError, match="no such weights"):
        _ = chat.actors


def test_an_interrupted_loading_ends_questions_and_no_thread_with_a_traceback(chat):
    """A KeyboardInterrupt that reached the questions' threads would be printed there, and answer nobody."""

    def interrupted():
        assert chat.may_load.wait(20)
        raise KeyboardInterrupt

    chat._load = interrupted
    stream = chat.stream(TEXT, ["fine"], ChatSettings(8), score=True)
    chat.may_load.set()
    with pytest.raises(KeyboardInterrupt):
        chat.load()
    (reply,) = stream
    assert reply.finish == "error" and "interrupted" in reply.message and chat.busy() == (0, 0)
    with pytest.raises(ModelError, match="interrupted"):
        chat.load()


def test_the_context_is_known_before_the_questions_are_checked(chat, loaded, monkeypatch):
    contexts, set_result = [], chat._loaded.set_result
    monkeypatch.setattr(loaded.actors, "context", 40)
    monkeypatch.setattr(
        chat._loaded, "set_result", lambda result: (contexts.append(chat.context), set_result(result)), raising=False
    )
    with loading(chat):
        pass
    assert contexts == [40]


def test_the_context_of_the_loaded_models_counts(chat, loaded, monkeypatch):
    """config.json may promise more than a model keeps once it is loaded."""
    stream = chat.stream(TEXT, ["fine"], ChatSettings(chat.context - 32))
    monkeypatch.setattr(loaded.actors, "context", 40)
    with loading(chat):
        pass
    (reply,) = stream
    assert reply.finish == "error" and "expected 1 to 8" in reply.message and chat.context == 40
    until(lambda: chat.busy() == (0, 0))


def test_others_are_answered_while_a_model_is_loaded_for_one(loaded, tmp_path, monkeypatch):
    hold, begun = threading.Event(), threading.Event()

    def slow(name, folder, config):
        begun.set()
        assert hold.wait(20)
        raise ModelError("it cannot be read")

    (tmp_path / "big").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "big" / name).write_text("{}")
    folders = folder_models.FolderModels(tmp_path, loaded.config)
    monkeypatch.setattr(folders, "_needs", lambda folder: 0.0)
    monkeypatch.setattr(folder_models, "FolderModel", slow)
    monkeypatch.setattr(loaded._loaded.result(), "folders", folders)
    waits = loaded.stream(TEXT, ["folder@big", "fine"], ChatSettings(8))
    assert begun.wait(20) and waits.awaited == "big is being loaded" and waits.poll() == []
    assert loaded.answer(TEXT, ["fine"], max_tokens=6)["fine"].tokens == 6  # another question
    stopped = loaded.stream(TEXT, ["folder@big"], ChatSettings(8))
    stopped.stop()
    assert [reply.finish for reply in stopped] == ["stopped"]
    hold.set()
    replies = {reply.pane: reply for reply in waits}
    assert replies["folder@big"].message == "it cannot be read" and replies["fine"].tokens == 8
    assert waits.awaited == ""
    until(lambda: loaded.busy() == (0, 0))


def test_a_model_that_was_loaded_for_one_is_not_taken_by_who_waits_for_another(loaded, tmp_path, monkeypatch):
    """The second question has the lock as soon as the first one's model is loaded; no pause is to lie between."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).write_text("{}")

    class Model:
        in_batch, multi_model = False, object()

        def __init__(self, name, folder, config):
            self.name = name

    folders = folder_models.FolderModels(tmp_path, loaded.config)
    monkeypatch.setattr(folders, "_needs", lambda folder: 0.0)
    monkeypatch.setattr(folder_models, "FolderModel", Model)
    monkeypatch.setattr(folder_models, "BATCH_SECONDS", 0.05)
    first, second = (PendingQuestion([pane_of(f"folder@{name}")], {}, ChatSettings()) for name in ("first", "second"))

    class Lock:  # the other one is there whenever it is released
        def __enter__(self):
            pass

        def __exit__(self, *_):
            folders._lock = threading.Lock()
            failures.update(folders.load_for(second))

    failures = {}
    folders._lock = Lock()
    assert folders.load_for(first) == {}
    assert first.folder_models["folder@first"].multi_model is Model.multi_model
    assert "'first' is answering" in failures["folder@second"][1] and second.folder_models == {}
