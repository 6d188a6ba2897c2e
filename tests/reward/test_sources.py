"""Sources of reward: settings that are refused, reward adapters side by side, columns, the plan, and the dry run."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lite_c2f.coarse.train import prepare_roles
from lite_c2f.config.loading import load_config
from lite_c2f.data.records import Prompt, Turn
from lite_c2f.errors import ConfigError, ModelError, NonFiniteError, RunError
from lite_c2f.memory.plan import make_plan
from lite_c2f.reward.calls import RewardError
from lite_c2f.reward.checks import check_judges
from lite_c2f.reward.files import content_hashes, publish_skipped
from lite_c2f.reward.sources import Judges, check_scores, role_of
from lite_c2f.runs.corpus import load_corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.models import absolute

ENDED = "coarse.rewards=[{function: 'lite_c2f.reward.functions:ended'}]"
HELD = "coarse.evaluate_every=2"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["coarse.rewards=[{function: a.py:f, weight: 0}]"], "source 'f' has weight 0"),
        (["coarse.rewards=[{adapter: there}]"], "adapter='there' has no name; add one"),
        (["coarse.rewards=[{function: a.py:f, name: ''}]"], "name ''"),
        (["coarse.rewards=[{function: a.py}]"], "function 'a.py': expected FILE.py:NAME"),
        (["coarse.rewards=[{model: trained, adapter: there, name: x}]"], "got model and adapter"),
        (["coarse.rewards=[{weight: 2}]"], "got none of them in"),
        (["coarse.rewards=[a.py:f]"], "got the text 'a.py:f'; write {function: 'a.py:f'}"),
        (["coarse.watch=trained"], "got the text 'trained'; write {model: trained}"),
        (["coarse.rewards=[{function: a.py:f}, {function: b.py:f}]"], "two sources named 'f'"),
        (["coarse.rewards=[{function: a.py:f, wieght: 2}]"], "'weight' (did you mean that?)"),
        (["coarse.rewards=[{function: a.py:f, at_least: 1}]"], "constraints (at_least) alone"),
        (["coarse.rewards=[{function: a.py:f, at_least: 1, weight: 2}, {model: trained}]"], "leave weight out"),
        (["coarse.rewards=[{model: trained, workers: 2}]"], "is no function"),
        (["coarse.rewards=[{function: a.py:f, timeout: 1.0e+300}]"], "less than or equal to 86400"),
        (["coarse.rewards=[{function: a.py:reward}]"], "that of another figure"),
        (["coarse.rewards=[{function: a.py:step}]"], "that of another figure"),
        (["coarse.rewards=[{model: trained}, {model: trained, name: again}]"], "stands there twice"),
        (["coarse.evaluate_temperature=0.0005"], "write 0 for greedy"),
        (["coarse.watch=[{function: a.py:f}]"], "set coarse.evaluate_every"),
        ([HELD, "coarse.best_by=g"], "expected one of reward, mean_tokens, share_ended, reward_model"),
        ([ENDED, "coarse.algorithm=dpo"], "are for PPO"),
        (["data.preferences=[]", "data.prompts=[a]"], "data.preferences=[]: pairs are trained on"),
        (
            ["data.preferences=[]", "coarse.rewards=[{function: 'a:f'}]"],
            "data.preferences=[]: data.prompts names no prompts either",
        ),
        (["data.prompts=[{path: a, rewards: [f]}]"], "names the reward 'f'; expected of coarse.rewards: reward_model"),
        (["data.preferences=[{path: a, rewards: [reward_model]}]"], "name them in data.prompts"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(ConfigError) as error:
        load_config({}, settings)
    assert said in str(error.value)


def test_settings_go_through_yaml():
    bound = "coarse.rewards=[{model: trained}, {function: a.py:f, at_least: 0.5, arguments: {n: 3}}]"
    config = load_config({}, [bound])
    assert load_config(yaml.safe_load(config.to_yaml())) == config


def test_a_default_run_is_told_from_no_older_one():
    """Checkpoints of versions without these settings have none of them, and go on."""
    identity = load_config({}).identity(("coarse", "fine"))
    assert "rewards" not in identity["coarse"] and "use" not in identity["coarse"]
    used = load_config({}, ["coarse.use=best"]).identity(("coarse", "fine"))
    assert used["coarse"] == identity["coarse"] and used["fine"]["coarse_use"] == "best"


def test_time_limits_and_folders_do_not_count():
    def identity(place, timeout):
        return load_config({}, [f"coarse.rewards=[{{function: {place}:f, timeout: {timeout}}}]"]).identity(("coarse",))

    assert identity("/a/x.py", 1) == identity("/b/x.py", 2) != identity("/b/y.py", 2)


def test_local_places_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = "coarse.rewards=[{function: mine.py:f}, {function: 'a.module:g'}, {adapter: there, name: x}]"
    made = absolute(load_config({}, [sources])).coarse.rewards
    assert made[0].function == f"{tmp_path}/mine.py:f" and made[1].function == "a.module:g"
    assert made[2].adapter == str(tmp_path / "there")


SETTINGS = ["lora.r=4", "lora.alpha=8", "data.max_prompt_tokens=16", "coarse.length.max=32", "coarse.length.start=8",
            "evaluation.max_tokens=32", "model.quantization=none", "hardware.device=cpu"]  # fmt: skip


def reward_adapter(pico, folder, weight, **metrics):
    shutil.copytree(pico["adapter"], folder / "adapter")
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.score.weight": torch.full((1, 32), weight)}, file)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder / "adapter"


@pytest.mark.filterwarnings("ignore")
def test_two_reward_models_on_one_base(pico, tmp_path):
    """The same adapter with heads of 1 and -3 gives scores in that ratio, each by its own mean and deviation."""
    reward_adapter(pico, tmp_path / "reward", 1.0, mean=2.0, std=4.0)
    other = reward_adapter(pico, tmp_path / "other", -3.0, mean=1.0, std=0.5)
    raw = reward_adapter(pico, tmp_path / "raw", 2.0)  # without figures of its own
    own = reward_adapter(pico, tmp_path / "own", 2.0, mean=7.0, std=3.0)  # with figures that are not used
    names = f"{{adapter: {other}, name: other}}, {{adapter: {raw}, name: raw, scale: none}}"
    names = f"{{adapter: {own}, name: own, scale: none, weight: -1}}, {names}"
    config = load_config({}, [*SETTINGS, f"coarse.rewards=[{names}, {{model: trained}}]"])
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    check_judges(config, models)
    roles, normalizers = prepare_roles(config, models, tmp_path)
    assert roles.adapters == ("policy", "critic", "reward", "reward_own", "reward_other", "reward_raw")
    judges = Judges.of(config, normalizers, None)
    rows = [[1, 5, 9], [1, 7, 8, 2], [1, 20]]
    scores = judges.model_scores(roles, rows, 0, 8, judges.rewards)
    for row, tokens in enumerate(rows):
        with roles.use("reward"):
            value = float(roles.value(torch.tensor([tokens]))[0, -1])
        assert scores["reward_model"][row] == pytest.approx((value - 2.0) / 4.0, abs=1e-5)
        assert scores["other"][row] == pytest.approx((-3 * value - 1.0) / 0.5, abs=1e-4)
        assert scores["raw"][row] == scores["own"][row] == pytest.approx(2 * value, abs=1e-5)
    assert judges.mix.running == ()  # `raw` is used as it is
    with roles.use("critic"):  # a copy of the first reward model that is maximised
        value = roles.value(torch.tensor([rows[1]]))[0, -1]
    assert float(value) == pytest.approx(scores["other"][1], abs=1e-4)
    assert role_of(config.coarse.rewards[3]) == "reward"


def test_an_adapter_of_another_base_or_shape(pico, tmp_path, edit_json):
    other = reward_adapter(pico, tmp_path / "other", 1.0)
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    source = f"coarse.rewards=[{{adapter: {other}, name: other}}]"
    config = load_config({}, [*SETTINGS, f"model.base={pico['base']}", f"model.instruct={pico['instruct']}", source])
    edit_json(other / "adapter_config.json", base_model_name_or_path="someone/else")
    with pytest.raises(ModelError, match=r"reward 'other': adapter '.*' was trained on 'someone/else'; expected this"):
        check_judges(config, models)
    edit_json(other / "adapter_config.json", base_model_name_or_path=str(pico["instruct"]))
    with pytest.raises(ModelError, match="was trained on"):
        check_judges(config, models)
    edit_json(other / "adapter_config.json", base_model_name_or_path=str(pico["base"]), lora_alpha=16)
    with pytest.raises(ModelError, match=r"made with lora_alpha=16; expected the run's 8\.0"):
        check_judges(config, models)
    shutil.rmtree(other)
    with pytest.raises(ModelError, match=r"adapter_config\.json' is missing"):
        check_judges(config)


def test_a_mean_that_changes_is_seen_and_one_that_is_no_number_refused(pico, tmp_path):
    """A resumed run compares the hashes; with `scale: none` the figures are not used."""
    other = reward_adapter(pico, tmp_path / "other", 1.0, mean=2.0, std=4.0)

    def hashes(*more):
        source = f"coarse.rewards=[{{adapter: {other}, name: other{''.join(more)}}}]"
        return content_hashes(load_config({}, [*SETTINGS, source]).coarse.judges)

    before, raw = hashes(), hashes(", scale: none")
    (tmp_path / "other" / "metrics.json").write_text('{"mean": 2.5, "std": 4.0}')
    assert hashes() != before and hashes(", scale: none") == raw
    (tmp_path / "other" / "metrics.json").write_text('{"mean": 2.5, "std": 0.0}')
    config = load_config({}, [*SETTINGS, f"coarse.rewards=[{{adapter: {other}, name: other}}]"])
    with pytest.raises(RunError, match=r"other/metrics\.json' has no usable mean and std; .*set `scale: none`"):
        check_judges(config)


def test_a_source_of_prompts_with_two_lists_of_rewards_is_refused():
    """The rows of both have one name, so that they could not be told apart."""
    twice = "data.prompts=[{path: a.jsonl, rewards: [ended]}, {path: a.jsonl}]"
    with pytest.raises(ConfigError, match=r"data\.prompts: 'a\.jsonl' stands there twice, with different `rewards`"):
        check_judges(load_config({}, [ENDED, twice]))
    check_judges(load_config({}, [ENDED, twice.replace("{path: a.jsonl}", "{path: b.jsonl}")]))
    check_judges(load_config({}, [ENDED, "data.prompts=[a.jsonl, a.jsonl]"]))


def test_a_score_that_is_not_finite_is_named():
    check_scores({"a": [1.0, None], "b": [-1e30, 0.0]})
    with pytest.raises(NonFiniteError, match="reward 'b' is nan for row 2; expected a finite number"):
        check_scores({"a": [1.0, None], "b": [0.0, float("nan")]})


def test_prompts_with_columns_are_enough_without_a_reward_model(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"What is {n}+{n}?", "answer": 2 * n}) + "\n" for n in range(50)))
    corpus = load_corpus(load_config({}, [ENDED, f"data.prompts=[{file}]"]))
    assert corpus.train_pairs == [] and len(corpus.train_prompts) + len(corpus.held_out_prompts) == 50
    for prompt in corpus.train_prompts:
        assert prompt.extra["answer"] == 2 * int(prompt.turns[0].text[8:].split("+")[0])


def test_the_plan_counts_what_is_left():
    def plan(*more):
        return make_plan(load_config({}, list(more)))

    usual, functions = plan(), plan(ENDED)
    watched = plan(ENDED, HELD, "coarse.watch=[{adapter: there, name: x}]")
    assert "reward" in [need.stage for need in usual.needs]
    assert "reward" not in [need.stage for need in functions.needs]
    adapter = usual.needs[0].parts["adapter"]
    counts = [
        next(need for need in one.needs if need.stage == "coarse_update").parts["adapters"] / adapter
        for one in (usual, functions, watched)
    ]
    assert counts == [3, 2, 3]  # policy, critic, and a reward model each
    assert [one.disk["adapters"] / adapter for one in (usual, functions, watched)] == [3, 2, 3]  # the best one's too
    assert any(note.startswith("every 2 updates 64 held-out prompts are answered") for note in watched.warnings)
    each = plan("coarse.evaluate_every=1")
    assert any(note.startswith("every update 64 held-out prompts are answered") for note in each.warnings)


def test_a_skipped_stage_and_a_later_wish(tmp_path):
    from lite_c2f.errors import RunError
    from lite_c2f.pipeline.prepare import check_skipped

    publish_skipped(tmp_path)
    check_skipped(load_config({}, [ENDED]), tmp_path)
    with pytest.raises(RunError, match="was begun without a reward model"):
        check_skipped(load_config({}), tmp_path)


def test_the_trial_calls_each_function_on_two_rows(tmp_path):
    from lite_c2f.reward.trial import try_functions

    (tmp_path / "mine.py").write_text("def f(inputs): return [len(inputs.rows) + 0.5, None]\n")
    mine, tokens = f"{tmp_path / 'mine.py'}:f", "lite_c2f.reward.functions:tokens"
    rewards = f"coarse.rewards=[{{function: '{mine}'}}, {{function: '{tokens}'}}]"
    prompts = [Prompt((Turn("human", f"Why {n}?"),), {"answer": "a b"} if n else {}) for n in range(3)]
    assert try_functions(load_config({}, [rewards]), prompts) == [
        "prompt 'Why 0?', response 'Why 0?', columns: none",
        "  f: 2.5",
        "  tokens: 2",
        "prompt 'Why 1?', response 'a b', columns: answer",
        "  f: does not apply",
        "  tokens: 2",
    ]
    (tmp_path / "text.py").write_text("def f(inputs): return ['good'] * 2\n")
    with pytest.raises(RewardError, match=r"gave 'good' for row 1 .*does not apply; correct it$"):  # no run to resume
        try_functions(load_config({}, [rewards.replace("mine", "text")]), prompts)


def test_functions_on_prompts_alone_need_no_pairs():
    settings = ["data.preferences=[]", "data.prompts=[a]", "coarse.rewards=[{function: 'a:f'}]"]
    assert load_config({}, settings).prompt_sources[0].path == "a"
