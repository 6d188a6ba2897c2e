"""What never happens: foreign code, pickles of others, shells, secrets on the disk."""

import ast
import json
import logging
import sys
from pathlib import Path

import pytest
import torch

from lite_c2f.config.settings_diff import first_difference
from lite_c2f.errors import ModelError, RunError
from lite_c2f.runs.fingerprints import changed_inputs, fingerprint, refuse_changes
from lite_c2f.runtime import disk_errors
from lite_c2f.runtime.log import FILE, LoggedSink, redact, written_to_log
from lite_c2f.runtime.progress import SilentSink
from lite_c2f.storage.results import ResultCache

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "lite_c2f").rglob("*.py")), ROOT / "app.py"]
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "subprocess"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "time.time", "yaml.unsafe_load", "torch.load"}
ALLOWED = {
    "adapter_files.py": {"torch.load"},  # of other tools' adapters, with weights_only: seen below
    "launch.py": {"subprocess", "time.time"},  # it starts training, without a shell, and says when
    "bodies.py": {"time.time"},  # `created` of a response, as OpenAI's interface has it
    "stages.py": {"time.time"},  # compared with the times in progress.json
    "record.py": {"time.time"},  # times that are written down, for other processes
}


def dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_pickle_no_shell_no_foreign_code_no_clock_that_can_be_set(file):
    allowed = ALLOWED.get(file.name, set())
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                str(getattr(node, "module", "")).split(".")[0]
            }
            assert not names & FORBIDDEN_MODULES - allowed, f"line {node.lineno}"
        if isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert dotted(node.func) not in FORBIDDEN_CALLS - allowed, f"line {node.lineno}"
            assert given.get("trust_remote_code", "False") == "False" and "shell" not in given, f"line {node.lineno}"
            name = dotted(node.func)
            if name == "torch.load":
                assert given["weights_only"] == "True", f"line {node.lineno}"
            if name.endswith(".from_pretrained") and name.lower().startswith("auto"):
                assert given["trust_remote_code"] == "False", f"line {node.lineno}"  # left out, it asks at a terminal
                assert "Model" not in name or given["use_safetensors"] == "True", f"line {node.lineno}"
            if name == "yaml.load":
                assert given["Loader"] == "UniqueKeyLoader"  # a SafeLoader


def test_code_in_a_model_folder_is_not_run(editable, edit_json, capsys):
    """Neither a model nor a tokenizer that brings its own code runs it, and nobody is asked whether it may."""
    from lite_c2f.backbone.load import load_model, load_tokenizer
    from lite_c2f.config.loading import load_config

    folder, mark = editable("base"), "code of a stranger"
    (folder / "theirs.py").write_text(f"print({mark!r})\nclass Theirs: ...\n")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "theirs.Theirs", "AutoConfig": "theirs.Theirs"})
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]})
    settings = load_config({}, ["data.max_prompt_tokens=16", "coarse.length.max=32", "coarse.length.start=8"])
    for load in (lambda: load_tokenizer(str(folder)), lambda: load_model(str(folder), settings)):
        try:
            load()
        except ModelError as error:
            assert "\n" not in str(error)
    assert mark not in capsys.readouterr().out and "theirs" not in sys.modules


def test_a_pickle_in_place_of_weights_is_not_opened(editable):
    from lite_c2f.backbone.load import load_model
    from lite_c2f.config.loading import load_config

    class Harmful:
        def __reduce__(self):
            return (print, ("opened",))

    folder = editable("base")
    (folder / "model.safetensors").unlink()
    torch.save({"w": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(str(folder), load_config({}))


def test_a_checkpoint_of_the_trainer_holds_no_free_pickle(tmp_path):
    """The trainer's own optimiser state is a pickle that is read with weights_only=True: harm is refused."""
    import inspect

    from transformers import Trainer

    for method in (Trainer._load_optimizer_and_scheduler, Trainer._load_rng_state):
        source = inspect.getsource(method)
        assert source.count("torch.load(") == source.count("weights_only=True") > 0


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("token hf_abcdefghijklmnop used", "token hf_*** used"),
        ("ghs_16C7e42F292c6912E7710c8 and AKIAIOSFODNN7EXAMPLE", "ghs_*** and AKIA***"),
        ("https://me:pw@host/file", "https://***@host/file"),
        ("https://me:p@w/d@host/file and https://t0ken@host", "https://***@host/file and https://***@host"),
        ("{'Authorization': 'Bearer abc.def.ghi'}", "{'Authorization': 'Bearer ***'}"),
        ("Bearer eyJhbGciOi.x.y", "Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=abc/def", "AWS_SECRET_ACCESS_KEY=***"),
        ("password: 'two words' next", "password: *** next"),
        ("--password hunter2", "--password ***"),
        ("https://huggingface.co/a/b and coarse.kl_coef=0.1", "https://huggingface.co/a/b and coarse.kl_coef=0.1"),
        ("lite-c2f app runs/a --auth me:pw --port 1", "lite-c2f app runs/a --auth *** --port 1"),
        ("HF_TOKEN=abc123", "HF_TOKEN=***"),
        ('"api_key": "abc"', '"api_key": ***'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("data.max_prompt_tokens=256 tokens 12", "data.max_prompt_tokens=256 tokens 12"),
    ],
)
def test_secrets_are_not_written(text, clean):
    assert redact(text) == clean


def test_the_log_says_what_happened_and_keeps_secrets(tmp_path, monkeypatch, capsys):
    theirs = logging.getLogger("transformers")
    monkeypatch.setattr(theirs, "isEnabledFor", lambda level: True)  # the command line makes it quiet
    monkeypatch.setattr(sys, "argv", ["lite-c2f", "train", "model.base=https://me:pw@host"])
    with pytest.raises(RunError), written_to_log(tmp_path):
        sink = LoggedSink(SilentSink())
        sink.on_message("a note with hf_abcdefghijklmnop")
        sink.on_stage("merge", 3, "MiB")
        theirs.warning("their warning")
        theirs.info("their chatter")
        raise RunError("a thing to fix")
    text = (tmp_path / FILE).read_text()
    for part in ("started: lite-c2f train", "a note with hf_***", "merge: 3 MiB", "their warning", "Traceback"):
        assert part in text, part
    assert "me:pw" not in text and "chatter" not in text and "a thing to fix" in text
    with written_to_log(tmp_path):
        pass
    assert (tmp_path / FILE).read_text().rstrip().endswith("ended")
    assert "a note" not in capsys.readouterr().err


def test_inputs_are_told_apart(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    before = fingerprint(small)
    small.write_bytes(b"abd")
    assert before.startswith("3 bytes, ") and fingerprint(small) != before
    with large.open("wb") as file:
        file.truncate(65 * 2**20)
    marks = [fingerprint(large)]
    for place in (0, 65 * 2**20 - 1):
        with large.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        marks.append(fingerprint(large))
    assert len(set(marks)) == 3 and "ends" in marks[0]
    told = changed_inputs({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    assert told == ["a was 1, is gone", "b was 2, is 3", "c was not there, is 4"]
    with pytest.raises(RunError, match=r"a was 1, is gone \(and 2 more\).*--force"):
        refuse_changes(tmp_path, {"a": "1", "b": "2"}, {"b": "3", "c": "4"}, force=False)
    assert refuse_changes(tmp_path, {"a": "1"}, {"a": "2"}, force=True) == ["a was 1, is 2"]
    assert refuse_changes(tmp_path, {"a": "1"}, {"a": "1"}, force=False) == []


def test_the_first_difference_is_named():
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert first_difference({"a": 1}, {"a": 1, "z": None}) is None
    assert first_difference({"a": 1}, {}) == ("a", 1, None)


def test_what_was_kept_is_found_again_for_the_same_inputs_only(tmp_path):
    file = tmp_path / "deep" / "kept.jsonl"
    kept = ResultCache(file, {"lr": 0.1, "names": ("a",)})
    assert kept.get("x") is None and not file.exists()  # nothing is written before there is something to keep
    kept.put("x", {"figures": [1, 2.5]})
    kept.put("y", 3)
    with file.open("a") as more:
        more.write('{"name": "z", "val')  # a kill in the middle of a line
    again = ResultCache(file, {"lr": 0.1, "names": ["a"]})
    assert (again.get("x"), again.get("y"), again.get("z")) == ({"figures": [1, 2.5]}, 3, None)
    again.put("z", 4)
    assert [ResultCache(file, {"lr": 0.1, "names": ["a"]}).get(name) for name in "xyz"] == [{"figures": [1, 2.5]}, 3, 4]
    other = ResultCache(file, {"lr": 0.2, "names": ["a"]})
    assert other.get("x") is None
    other.put("w", 1)
    assert [json.loads(line).get("name") for line in file.read_text().splitlines()] == [None, "w"]
    other.clear()
    assert not file.exists()


def test_disk_errors_become_one_line(tmp_path):
    full = OSError(28, "No space left on device", str(tmp_path / "file"))
    line = r"file': the disk is full, \d+ MiB free; expected .*; make room; then the same"
    with pytest.raises(RunError, match=line), disk_errors.as_user_errors(tmp_path):
        raise full
    with pytest.raises(RunError, match="disk is full"), disk_errors.as_user_errors(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="a bug"), disk_errors.as_user_errors(tmp_path):
        raise RuntimeError("a bug")
    assert disk_errors.refusal(OSError(13, "Permission denied", "x")) is not None
    assert disk_errors.refusal(FileNotFoundError(2, "No such file", "x")) is None
