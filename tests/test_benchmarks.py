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


def evaluated(code):
    """What code on the benchmarks prints last, as JSON."""
    code = f"import json, sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_rollout_does_equal_work():
    """Against `generate` and continuous batching; that every row has its length is asserted in it."""
    task = "rollout.Task(256, 4, 8, 16, 8.0)"
    found = evaluated(f"import rollout\nprint(json.dumps(rollout.measure({task}, 'toy', 'nf4', 'policy', 1)))")
    assert set(found) == {"eos", "fixed", "lognormal"}
    for of_kind in found.values():
        assert all(of_kind[name]["speedup"] > 0 for name in ("generate", "generate_batch"))


def test_time_to_reward_counts_a_rate_that_keeps_what_it_reaches():
    """0.9 of the rise from 0 to 1.0: `a` has it first at 0.1 and loses it, so that 0.2 counts; `b` never has it."""
    curves = {
        "a": {
            0.1: [[0, 0, 0.0], [5, 50, 1.0], [9, 90, 0.2], [10, 100, 0.2], [11, 110, 0.2]],
            0.2: [[0, 0, 0.0], [7, 70, 0.92], [8, 80, 1.0], [9, 90, 1.0], [10, 99, 1.0]],
        },
        "b": {0.1: [[0, 0, 0.0], [5, 50, 0.3], [6, 60, 0.3], [7, 70, 0.3]]},
    }
    found = evaluated(f"import time_to_reward\ncurves = {curves!r}\nprint(json.dumps(time_to_reward.figures(curves)))")
    assert found["top"] == 1.0 and found["wanted"] == 0.9
    assert found["arms"]["a"]["learning_rate"] == 0.2 and found["arms"]["a"]["kept_after"]["tokens"] == 70
    assert found["arms"]["a"]["by_rate"]["0.1"]["first_after"]["tokens"] == 50
    assert found["arms"]["b"]["kept_after"] == {"seconds": None, "tokens": None}


def test_of_a_finished_run_with_a_larger_budget_the_beginning_counts(tmp_path):
    for rate, curve in (
        ("0.0003", [[0, 0, 0.0], [9, 6000, 0.5], [18, 12000, 0.4], [27, 18000, 0.9], [36, 24000, 0.8]]),
        ("0.00015", [[0, 0, 0.0], [9, 9000, 0.1]]),
    ):
        tokens = curve[-1][1]
        (folder := tmp_path / f"smollm2-0-ppo-{rate}-{tokens}").mkdir()
        (folder / "curve.json").write_text(json.dumps(curve))
    found = run("time_to_reward.py", "--model", "smollm2", "--jobs", tmp_path, "--finished", "--tokens", 12000)
    assert found["curves"] == {"ppo": {"0.0003": [[0, 0, 0.0], [9, 6000, 0.5], [18, 12000, 0.4]]}}
    assert found["top"] == 0.3 and found["arms"]["ppo"]["tokens_in_all"] == 12000


def test_gpu_runs_whole_on_a_cpu_with_tiny(tmp_path):
    found = run("gpu.py", "--tiny", "--rollouts", 8, "--limits", "4,8", "--out", tmp_path / "tiny.json")
    assert set(found["ppo"]) == {"4", "8"} and found["ppo"]["8"]["halved"] == 0
    assert found["greedy_agreement"] == 1.0 and found["tokens_per_s"]["sampler"] > 0
    assert json.loads((tmp_path / "tiny.json").read_text()) == found
    assert found["ppo"]["8"]["update"]["measured_gib"] is None  # nothing is claimed that was not measured


def test_planned_memory_is_within_a_tenth_of_what_was_allocated():
    assert run("memory.py", "--hidden", 256, "--layers", 4, "--limits", "128")["largest_error"] < 0.1


def test_our_side_of_the_comparison_with_trl(tmp_path):
    """TRL itself is installed by the benchmark, and left out here."""
    found = evaluated(
        "from pathlib import Path; import ppo_step, models\n"
        f"folder = models.small_mistral(Path({str(tmp_path)!r}), 256)\n"
        "work = ppo_step.works('toy', 2, 'nf4', 1)[0]._replace(vocabulary=256)\n"
        "print(json.dumps(ppo_step.ours(str(folder), work)))"
    )
    assert len(found["seconds"]) == 1 and 25 < found["mean_tokens"] < 55  # ends by itself after 40 tokens or so


def test_a_checkpoint_is_saved_restored_and_weighed():
    found = run("checkpoint.py", "--layers", 2, "--hidden", 256, "--repeats", 2)
    assert (
        found["mib"] > 1 and found["seconds_to_save"] >= 0 and set(found["share_of_such_an_update"]) == {"start", "max"}
    )


def test_the_server_is_compared_with_its_engine(toy_run):
    found = run("serve.py", toy_run, "--rounds", 1, "--clients", 2, "--tokens", 8)
    assert found["together_ratio"] > 0 and found["first_token_ratio"] > 0 and found["clients"] == 2
