"""The benchmarks run, and say what they are for; their speed is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


def run(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_rollout_does_equal_work():
    found = run("rollout.py", "--slots", 4, "--work", 2, "--repeats", 1)
    assert found["speedup"] == found["lengths"]["eos"]["speedup"] > 0
    assert set(found["lengths"]) == {"eos", "fixed", "lognormal"}


def test_gpu_runs_whole_on_a_cpu_with_tiny(tmp_path):
    found = run("gpu.py", "--tiny", "--rollouts", 8, "--limits", "4,8", "--out", tmp_path / "tiny.json")
    assert set(found["ppo"]) == {"4", "8"} and found["ppo"]["8"]["halved"] == 0
    assert found["greedy_agreement"] == 1.0 and found["tokens_per_s"]["sampler"] > 0
    assert json.loads((tmp_path / "tiny.json").read_text()) == found
    assert found["ppo"]["8"]["update"]["measured_gib"] is None  # nothing is claimed that was not measured


def test_planned_memory_is_within_a_tenth_of_what_was_allocated():
    assert run("memory.py", "--limits", "256")["largest_error"] < 0.1


def test_our_side_of_the_comparison_with_trl(tmp_path):
    """TRL itself is installed by the benchmark, and left out here."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from pathlib import Path; import ppo_step, models, json\n"
        f"folder = models.small_mistral(Path({str(tmp_path)!r}), 256)\n"
        "work = ppo_step.works('toy', 2, 'nf4', 1)[0]._replace(vocabulary=256)\n"
        "print(json.dumps(ppo_step.ours(str(folder), work)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["seconds"]) == 1 and 25 < found["mean_tokens"] < 55  # ends by itself after 40 tokens or so


def test_a_checkpoint_is_saved_restored_and_weighed():
    found = run("checkpoint.py", "--layers", 2, "--hidden", 256, "--repeats", 2)
    assert (
        found["mib"] > 1 and found["seconds_to_save"] >= 0 and set(found["share_of_such_an_update"]) == {"start", "max"}
    )


def test_the_server_is_compared_with_its_engine(toy_run):
    found = run("serve.py", toy_run, "--rounds", 1, "--clients", 2, "--tokens", 8)
    assert found["together_ratio"] > 0 and found["first_token_ratio"] > 0 and found["clients"] == 2
