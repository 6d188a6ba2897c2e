"""The whole pipeline, for real: what the demo must reach, and what others read of its run directory."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from likeness import alike

from lite_c2f.storage.files import read_json

pytestmark = pytest.mark.slow

METRICS = {
    "stage", "step", "reward", "kl", "limit", "hit_limit", "tokens", "policy_loss", "value_loss", "entropy",
    "clip_fraction", "explained_variance", "tokens_per_s", "seconds", "peak_memory_mib",
}  # fmt: skip


@pytest.fixture(scope="module")
def summary(toy_run):
    return read_json(toy_run / "summary.json")


@pytest.fixture(scope="module")
def lines(toy_run):
    rows = [json.loads(line) for line in (toy_run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == "coarse"]


def test_the_reward_model_ranks_held_out_pairs(summary):
    assert summary["reward_model"]["accuracy"] >= 0.85


def test_rewards_rise_and_the_limit_grows(summary):
    coarse = summary["coarse"]
    assert coarse["reward_last"] - coarse["reward_first"] >= 1.0
    assert coarse["limit_first"] == 16 and coarse["limit_last"] >= 48


def test_the_fine_actor_is_better_than_the_instruct_model(summary):
    actors = summary["actors"]
    fine = actors["fine"]
    assert fine["analytic"] >= 0.8 and fine["eos"] >= 0.95
    assert fine["accuracy"] >= actors["instruct"]["accuracy"] + 0.15
    assert fine["repeated_4gram"] <= actors["coarse"]["repeated_4gram"] + 0.01


def test_summary_has_the_contract_s_shape(summary):
    assert summary["schema"] == 1 and set(summary["actors"]) == {"base", "instruct", "coarse", "fine"}
    for figures in summary["actors"].values():
        assert set(figures) == {"reward", "tokens", "repeated_4gram", "eos", "accuracy", "analytic"}
    assert set(summary["coarse"]) == {"limit_first", "limit_last", "reward_first", "reward_last"}
    assert {"reward", "coarse", "fine"} <= set(summary["seconds"])


def test_every_update_is_logged_in_full(lines):
    assert [line["step"] for line in lines] == list(range(1, 41))
    for line in lines:
        assert set(line) >= METRICS
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
    limits = [line["limit"] for line in lines]
    assert limits == sorted(limits) and limits[0] == 16
    assert max(line["sampling_gap"] for line in lines) < 1e-4  # float32: sampling and update agree


def test_limits_follow_the_formula(lines):
    """Replay the controller from the log alone."""
    from lite_c2f.coarse.length import advance, start
    from lite_c2f.config.loading import load_config
    from lite_c2f.toy import CONFIG

    settings = load_config(CONFIG).coarse.length
    state = start(settings)
    for line in lines:
        assert line["limit"] == state.limit
        state = advance(state, settings, line["reward"], line["value_loss"], line["hit_limit"])


def test_samples_are_stored_and_change(toy_run):
    rows = [json.loads(line) for line in (toy_run / "coarse" / "samples.jsonl").read_text().splitlines()]
    first = [row["response"] for row in rows if row["step"] == 1]
    last = [row["response"] for row in rows if row["step"] == 40]
    assert len(first) == len(last) == 4 and first != last
    steps = [[row["tokens"] for row in rows if row["step"] == step] for step in (1, 40)]
    assert sum(steps[1]) > sum(steps[0])  # the limit has grown, and they with it


def test_the_table_is_printed(toy_run):
    printed = (toy_run / "stdout.txt").read_text()
    for word in ("instruct", "coarse", "fine", "accuracy"):
        assert word in printed
    assert re.search(r"lite[-_]c2f chat \S+", printed)  # as it was typed, or can be


STOCK = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoTokenizer
run = sys.argv[1]
coarse = AutoPeftModelForCausalLM.from_pretrained(run + "/coarse/adapter").eval()
fine = AutoModelForCausalLM.from_pretrained(run + "/fine/model").eval()
tokenizer = AutoTokenizer.from_pretrained(run + "/fine/model")
messages = [{"role": "user", "content": "Tom has 3 apples, first finds 4, second loses 2. How many now?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = fine.generate(**inputs, max_new_tokens=90, do_sample=False)[0, inputs["input_ids"].shape[1]:]
padding = AutoTokenizer.from_pretrained(run + "/reward/adapter").pad_token_id
AutoPeftModelForSequenceClassification.from_pretrained(run + "/reward/adapter", num_labels=1, pad_token_id=padding)
assert "lite_c2f" not in sys.modules
print(json.dumps([inputs["input_ids"][0].tolist(), said.tolist()]))
"""


@pytest.mark.filterwarnings("ignore")  # the libraries' own, on loading
def test_adapter_and_model_load_with_stock_libraries(toy_run):
    from transformers import AutoModelForCausalLM

    from lite_c2f.sampling import Sampling, sample

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", STOCK, str(toy_run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # the same weights and prompt through our own sampler
    model = AutoModelForCausalLM.from_pretrained(toy_run / "fine" / "model").eval()
    prompt, said = json.loads(done.stdout.splitlines()[-1])
    ours = sample(model, [prompt], Sampling(90, temperature=0), eos_ids=[model.config.eos_token_id], pad_id=0)
    assert ours.tokens == [said] and len(said) > 1


@pytest.mark.filterwarnings("ignore")  # the libraries' own, on loading
def test_stock_reward_model_gives_our_scores(toy_run):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import BitsAndBytesConfig

    from lite_c2f.actors.models import load_coarse
    from lite_c2f.backbone.load import keep_weights_trainable
    from lite_c2f.reward.score import score
    from lite_c2f.runs.manifest import open_run

    config, models = open_run(toy_run)
    _, judge = load_coarse(config, models, toy_run)
    text = (
        "\n\nHuman: Tom has 3 apples, first finds 4, second loses 2. How many now?\n\nAssistant: The answer is 5.</s>"
    )
    row = judge.tokenizer(judge.tokenizer.bos_token + text, add_special_tokens=False)["input_ids"]
    ours = score(judge.roles, [row], pad_id=judge.tokenizer.pad_token_id)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    stock = AutoPeftModelForSequenceClassification.from_pretrained(
        str(toy_run / "reward" / "adapter"), num_labels=1, quantization_config=four_bit, dtype=torch.float32
    ).eval()
    keep_weights_trainable(stock)
    with torch.no_grad():
        theirs = stock(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long)).logits
    torch.testing.assert_close(ours, theirs.flatten(), atol=1e-4, rtol=0)


def test_the_merged_model_says_what_the_unmerged_one_says(toy_run):
    """Merged and loaded in 4 bits, against the instruct model in 4 bits with the scaled adapter beside it."""
    from lite_c2f.actors.models import InstructModel
    from lite_c2f.data.records import Turn
    from lite_c2f.runs.manifest import open_run
    from lite_c2f.sampling import Sampling

    config, models = open_run(toy_run)
    ratio = read_json(toy_run / "fine" / "merge.json")["ratio"]
    turns = [(Turn("human", f"Eva has {n} coins, first wins 5, second drops 2. How many now?"),) for n in range(1, 9)]
    greedy = Sampling(90, temperature=0)
    merged = InstructModel(config, str(toy_run / "fine" / "model")).answer(turns, greedy)
    unmerged = InstructModel(config, models.instruct, toy_run / "coarse" / "adapter")
    with unmerged.ratio(ratio):
        beside = unmerged.answer(turns, greedy)
    with unmerged.ratio(0.0):
        bare = unmerged.answer(turns, greedy)
    near, far = (
        sum(alike(one.text_tokens, other.text_tokens) for one, other in zip(merged, others, strict=True))
        for others in (beside, bare)
    )
    assert near > 2 * far


def test_a_critic_is_not_merged(toy_run, call, tmp_path):
    models = read_json(toy_run / "run.json")["models"]
    code, _, err = call(
        "merge", "--adapter", toy_run / "coarse" / "critic", "--base", models["base"], "--instruct", models["instruct"],
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2 and "critic" in err and not (tmp_path / "out").exists()


def test_adapters_stay_float32_and_learn(toy_run):
    from safetensors.torch import load_file

    for name in ("reward/adapter", "coarse/adapter", "coarse/critic"):
        tensors = load_file(toy_run / name / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert all(tensor.norm() > 0 for key, tensor in tensors.items() if "lora_B" in key)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_report_and_eval_and_sweep(toy_run, call, tmp_path):
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(toy_run, run)
    assert call("report", run)[0] == 0
    page = (run / "report" / "index.html").read_text()
    assert page.count("<svg") >= 3 and not re.search(r"(src|href)=.?https?:", page)
    code, out, err = call("eval", run, "evaluation.prompts=8", "--json")
    assert code == 0, err
    assert set(json.loads(out)) == {"base", "instruct", "coarse", "fine"}
    code, out, err = call("sweep", run, "--ratios", "0.5", "--per-layer-groups", "--budget", "4", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["ratio"] for row in found["tried"]] == [0.0, 0.5]
    assert found["tried"][0]["kl"] == 0.0 and found["tried"][1]["kl"] > 0.001
    assert len(found["groups"]["trials"]) == 2 and "0.5" in found["groups"]["verdict"]
    assert "<svg" in (run / "fine" / "sweep.svg").read_text()
    for file in ("fine/ratios.json", "config.yaml"):  # trying things out leaves the run's own record alone
        assert (run / file).read_bytes() == (toy_run / file).read_bytes()


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_ratios_by_group_of_layers_are_tried_and_merged(toy_run, call, tmp_path):
    """From ratio 0.5, where the analysis only half comes over: what is merged is what was proved to be better."""
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(toy_run, run)
    shutil.rmtree(run / "fine")
    more = ("fine.ratio=0.5", "fine.group_budget=15", "fine.prompts=96")
    code, _, err = call("train", run / "config.yaml", *more, "--run-dir", run, "--stage", "fine")
    assert code == 0, err
    found = json.loads((run / "fine" / "groups.json").read_text())
    confirmed = found.get("confirmation", {"gain": 0.0, "gain_se": 0.0})  # none where one ratio was best everywhere
    assert found["better"] == (confirmed["gain"] > 2 * confirmed["gain_se"] > 0)
    assert found["verdict"] in err.replace("\n", "")
    merged = json.loads((run / "fine" / "merge.json").read_text())
    if not found["better"]:
        assert {row["ratio"] for row in merged["tensors"].values()} == {0.5}
        return
    assert merged["layer_ratios"] == found["layer_ratios"] and len(set(found["chosen"].values())) > 1
    assert {row["ratio"] for row in merged["tensors"].values()} == set(found["chosen"].values())
    models = json.loads((run / "run.json").read_text())["models"]
    folders = [f"--{name}={models[name]}" for name in ("base", "instruct")] + [f"--adapter={run}/coarse/adapter"]
    ratios = f"--layer-ratios={run}/fine/layer-ratios.yaml"
    code, out, err = call("merge", *folders, ratios, f"--out={tmp_path}/again", "--verify", "--json")
    assert code == 0, err
    verified = json.loads(out)["verified"]
    assert verified["compared"] and verified["error"] < 0.1 * verified["effect"]
    again = json.loads((tmp_path / "again" / "merge.json").read_text())
    assert again["shards"] == merged["shards"]
