"""The doctor finds what is wrong, and says what to do."""

import json

import pytest
import torch

from lite_c2f import doctor
from lite_c2f.checkpoints import Checkpoint, Checkpoints
from lite_c2f.errors import RunError
from lite_c2f.locks import locked

WELL = {"4-bit": "works (relative error 0.09)", "gpu": "none", "torch": "2.13.0", "torch built for": "CPU"}


def test_a_sound_machine_has_no_problems(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.problems(WELL, 100.0) == []
    found = doctor.examine()
    assert found["4-bit"].startswith("works") and found["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("facts", "free", "words"),
    [
        ({"4-bit": "fails: no kernel"}, 100.0, "4-bit weights: fails: no kernel; reinstall bitsandbytes"),
        ({}, 1.5, "only 1.5 GiB free on this disk; make room"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, facts, free, words):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    told = doctor.problems(WELL | facts, free)
    assert len(told) == 1 and words in told[0]


def test_a_gpu_that_torch_does_not_see_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (told,) = doctor.problems(WELL, 100.0)
    assert "there is an NVIDIA driver, but torch 2.13.0 (for CPU) sees no GPU" in told


def test_packages_are_held_against_what_is_required():
    assert doctor.unmet("torch>=2.9") is None
    assert doctor.unmet("torch>=99") == f"torch is {torch.__version__}; pip install 'torch>=99'"
    assert doctor.unmet("no-such-package>=1") == "no-such-package is missing; pip install 'no-such-package>=1'"


def test_the_secret_itself_is_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    assert "abcdefghijklmnop" not in json.dumps(doctor.examine())


def test_a_run_is_described(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        doctor.examine_run(tmp_path)
    (tmp_path / "run.json").write_text('{"models": {"base": "b", "instruct": "i"}, "seconds": {}, "lite_c2f": "0.1.0"}')
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "metrics.json").write_text("{}")
    (tmp_path / "log.txt").write_text("first\nlast\n")
    store = Checkpoints(tmp_path / "coarse" / "checkpoints")
    for step in (4, 6):
        store.save(Checkpoint(step, {}, {"w": torch.ones(2)}), 0.0)
    (tmp_path / "coarse" / "checkpoints" / "step-000006" / "state.json").write_text("{}")
    with locked(tmp_path):
        found = doctor.examine_run(tmp_path)
        assert found["in use"].startswith("process ")
    assert (found["reward"], found["coarse"]) == ("published", "not published, checkpoint step-000004")
    assert (found["fine"], found["comparison"], found["log ends"]) == ("not published", "not made", "last")
    assert len(found["problems"]) == 1 and "step-000006' is damaged" in found["problems"][0]
    assert doctor.examine_run(tmp_path)["in use"] == "no"
