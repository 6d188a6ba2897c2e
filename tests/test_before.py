"""Runs of an earlier version: they open and go on, and the same seed gives the same weights as it gave then."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

BEFORE = Path(__file__).parent / "before"
MADE_IN = "/tmp/before"  # the folder that the archive's absolute paths name
TOY_RUN = (  # the reward model, six updates, a merge and a comparison, on the toy world
    "reward.max_pairs=512", "coarse.updates=6", "fine.ratios=[0.5,1.0]", "fine.prompts=16", "evaluation.prompts=32",
)  # fmt: skip
WEIGHTS = (
    "reward/adapter/adapter_model.safetensors", "coarse/adapter/adapter_model.safetensors",
    "coarse/critic/adapter_model.safetensors", "fine/model/model.safetensors",
)  # fmt: skip
# Of one line of metrics.jsonl; what is left out is time and memory. Other processors round elsewhere: relative.
TOLERANCE = {
    "reward": 1e-2, "kl": 5e-2, "limit": 0, "hit_limit": 0, "tokens": 0, "value_loss": 5e-2, "entropy": 1e-2, "step": 0,
}  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The archive's models, data and runs, where this test keeps its files; the working directory."""
    with tarfile.open(BEFORE / "runs-0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".yaml", ".jsonl"):
            file.write_text(file.read_text().replace(MADE_IN, str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def coarse_steps(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["stage"] == "coarse"]


@pytest.mark.filterwarnings("ignore")  # the libraries' own, of tiny models
def test_a_stopped_run_goes_on_from_its_checkpoint(runs, call):
    saved = coarse_steps(runs / "stopped")
    assert 3 <= saved[-1] < 12
    rewarded = (runs / "stopped" / "reward" / "adapter" / "adapter_model.safetensors").read_bytes()
    code, _, err = call("train", "stopped/config.yaml", "--resume")
    assert code == 0, err
    assert coarse_steps(runs / "stopped") == list(range(1, 13))  # none again: those before it are the old lines
    assert (runs / "stopped" / "reward" / "adapter" / "adapter_model.safetensors").read_bytes() == rewarded
    assert set(json.loads((runs / "stopped" / "summary.json").read_text())["actors"]) == {
        "base", "instruct", "coarse", "fine",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_finished_run_is_reported_and_answers(runs, call):
    before = json.loads((runs / "finished" / "summary.json").read_text())
    assert call("train", "finished/config.yaml")[0] == 0  # nothing left to do
    assert json.loads((runs / "finished" / "summary.json").read_text())["actors"] == before["actors"]
    code, _, err = call("report", "finished")
    assert code == 0, err
    assert "Coarse" in (runs / "finished" / "report" / "index.html").read_text()
    code, _, err = call("eval", "finished", "evaluation.prompts=4")
    assert code == 0, err


@pytest.mark.filterwarnings("ignore")
def test_the_actors_of_a_finished_run_answer(runs):
    from lite_c2f import Chat

    answers = Chat("finished").answer("How many apples?", max_tokens=8)
    assert set(answers) == {"coarse", "fine", "baseline"}
    assert all(reply.finish in ("eos", "stop", "limit") for reply in answers.values())


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore")
def test_the_same_seed_gives_the_same_figures(runs, call):
    """The finished run's settings, trained again from the same models."""
    code, _, err = call("train", "finished/config.yaml", "--run-dir", "again")
    assert code == 0, err
    before, now = rows_of(runs / "finished"), rows_of(runs / "again")
    assert len(before) == len(now)
    for was, row in zip(before, now, strict=True):
        for name in TOLERANCE.keys() & was.keys():
            assert row[name] == pytest.approx(was[name], rel=TOLERANCE[name], abs=1e-6), (name, was, row)
    before, now = (json.loads((runs / run / "summary.json").read_text()) for run in ("finished", "again"))
    for actor, figures in before["actors"].items():
        assert now["actors"][actor] == pytest.approx(figures, rel=1e-2), actor


def machine():
    """What the last bits of a matrix product depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    versions = {name: version(name) for name in ("torch", "bitsandbytes", "transformers", "peft", "trl")}
    return {"cpu": hashlib.sha256(cpu.encode()).hexdigest()[:16], **versions}


def toy_hashes(run):
    """SHA-256 of the adapters and the merged model of a toy run of a few updates, made in one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lite_c2f", "train", str(BEFORE.parents[1] / "configs" / "toy.yaml"), *TOY_RUN]
    subprocess.run([*command, "--run-dir", str(run)], check=True, env=env, capture_output=True)
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in WEIGHTS}


@pytest.mark.slow
def test_a_toy_run_gives_the_same_bytes(tmp_path):
    """`python tests/test_before.py` writes the file anew, after a change that is meant to change them."""
    from lite_c2f.toy.build import toy_pair

    before = json.loads((BEFORE / "toy.json").read_text())
    base = hashlib.sha256((toy_pair().base / "model.safetensors").read_bytes()).hexdigest()
    if before["machine"] != machine() or before["base"] != base:
        pytest.skip("the bytes on file are another machine's, or other releases', which round elsewhere")
    assert toy_hashes(tmp_path / "run") == before["weights"]


if __name__ == "__main__":
    import tempfile

    from lite_c2f.toy.build import toy_pair

    base = hashlib.sha256((toy_pair().base / "model.safetensors").read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        record = {"machine": machine(), "base": base, "weights": toy_hashes(Path(folder) / "run")}
    (BEFORE / "toy.json").write_text(json.dumps(record, indent=1) + "\n")
