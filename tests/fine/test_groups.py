"""The search for ratios by group of layers: finds what is there, and does not claim what is not."""

import random

import pytest

from lite_c2f.errors import ConfigError
from lite_c2f.fine.groups import group_of, search_group_ratios, verdict
from lite_c2f.fine.ratios import choose_ratios, interpolate, layer_of, read_layer_ratios
from lite_c2f.fine.sweep import RatioTrial

WEIGHTS = [
    f"model.layers.{layer}.{part}.weight" for layer in range(6) for part in ("self_attn.q_proj", "mlp.up_proj")
] + ["lm_head.weight"]


class Actor:
    """Stands in for the bench of models: rewards are a known function of the ratios, with noise of its own a prompt."""

    def __init__(self, reward, eos=lambda ratios: 1.0, prompts=64, noise=0.0, seed=0):
        self.prompts, self.noise, self.seed = list(range(prompts)), noise, seed
        self.reward, self.eos = reward, eos
        self.asked = []
        self.instruct = type("Instruct", (), {"weights": WEIGHTS})

    def measure(self, ratios, prompts):
        self.asked.append((dict(ratios), tuple(prompts)))
        chance = random.Random(1000 * self.seed + len(self.asked))
        rewards = [self.reward(ratios, prompt) + chance.gauss(0, self.noise) for prompt in prompts]
        return RatioTrial({"reward": sum(rewards) / len(rewards), "eos": self.eos(ratios)}, rewards)


def middle_mlp(ratios):
    return ratios["model.layers.2.mlp.up_proj.weight"]


def test_groups_by_hand():
    found = [group_of(f"model.layers.{layer}.mlp.up_proj.weight", 32) for layer in (0, 10, 11, 21, 22, 31)]
    assert found == ["MLP, early", "MLP, early", "MLP, middle", "MLP, middle", "MLP, late", "MLP, late"]
    assert group_of("model.layers.0.self_attn.q_proj.weight", 1) == "attention, early"
    assert group_of("model.embed_tokens.weight", 32) is None
    assert layer_of("transformer.h.3.attn.c_attn.weight") == 3 and layer_of("model.norm.weight") is None


def test_finds_the_group_that_matters():
    """The best ratio of the middle MLP is 1.5, every prompt gains from it; nothing else matters."""
    actor = Actor(lambda ratios, _: -abs(middle_mlp(ratios) - 1.5))
    found = search_group_ratios(actor, 1.0, 15, 0.95)
    assert found["better"] and found["chosen"] == {
        "attention, early": 1.0,
        "MLP, early": 1.0,
        "attention, middle": 1.0,
        "MLP, middle": 1.5,
        "attention, late": 1.0,
        "MLP, late": 1.0,
    }
    assert len(actor.asked) == 15
    assert "beat the single ratio 1:" in verdict(found)
    # the search and its proof share no prompt
    searched, proved = (
        {prompt for _, prompts in part for prompt in prompts} for part in (actor.asked[:-2], actor.asked[-2:])
    )
    assert not searched & proved and len(searched) == len(proved) == 32
    ratios = dict(found["layer_ratios"])
    assert ratios["model.layers.3.mlp.up_proj.weight"] == 1.5 and ratios["lm_head.weight"] == 1.0
    assert choose_ratios(WEIGHTS, 9.0, read_layer_ratios(found["layer_ratios"], False)) == ratios


def test_a_gain_that_does_not_hold_on_unseen_prompts_is_not_claimed():
    """The first half of the prompts likes a larger middle MLP, the other half does not."""
    actor = Actor(lambda ratios, prompt: (1 if prompt < 32 else -1) * middle_mlp(ratios))
    found = search_group_ratios(actor, 1.0, 15, 0.95)
    assert found["chosen"]["MLP, middle"] == 1.5 and not found["better"]
    assert found["confirmation"]["gain"] < 0 and "keep the single one" in verdict(found)


def test_noise_alone_is_hardly_ever_called_better():
    """Of 50 searches among nothing a quarter keeps a change (12 chances of 2.3%), and 2.3% of those prove it."""
    found = [search_group_ratios(Actor(lambda *_: 0.0, noise=1.0, seed=seed), 1.0, 15, 0.95) for seed in range(50)]
    assert sum(trial["better"] for trial in found) <= 2
    assert 3 <= sum("confirmation" in trial for trial in found) <= 25


def test_a_gain_that_runs_on_is_not_kept():
    actor = Actor(lambda ratios, _: middle_mlp(ratios), eos=lambda ratios: 0.5 if middle_mlp(ratios) > 1 else 1.0)
    found = search_group_ratios(actor, 1.0, 15, 0.95)
    assert set(found["chosen"].values()) == {1.0} and "no group's ratio" in verdict(found)
    assert "confirmation" not in found and len(actor.asked) == 13


def test_a_gain_whose_responses_do_not_end_on_unseen_prompts_is_not_claimed():
    """A larger middle MLP earns reward everywhere; on the second half of the prompts its responses run on."""

    class RunsOn(Actor):
        def measure(self, ratios, prompts):
            trial = super().measure(ratios, prompts)
            runs_on = min(prompts) >= 32 and middle_mlp(ratios) > 1
            return trial._replace(figures=trial.figures | {"eos": 0.5 if runs_on else 1.0})

    result = search_group_ratios(RunsOn(lambda ratios, _: middle_mlp(ratios)), 1.0, 15, 0.95)
    assert result["chosen"]["MLP, middle"] == 1.5 and not result["better"]
    assert result["confirmation"]["gain"] == pytest.approx(0.5)
    assert "only 50% of responses end (min_eos 0.95)" in verdict(result) and "keep the single ratio 1" in verdict(
        result
    )
    assert "better when responses end (min_eos)" in result["rule"]


@pytest.mark.parametrize("budget", [4, 5, 9])
def test_the_budget_is_kept(budget):
    actor = Actor(lambda ratios, _: sum(ratios.values()))
    search_group_ratios(actor, 1.0, budget, 0.95)
    assert len(actor.asked) <= budget


def test_too_little_to_search_with():
    with pytest.raises(ConfigError, match="budget"):
        search_group_ratios(Actor(lambda *_: 0.0), 1.0, 3, 0.95)
    with pytest.raises(ConfigError, match="prompts"):
        search_group_ratios(Actor(lambda *_: 0.0, prompts=15), 1.0, 15, 0.95)


# -- gradients


def test_gradient_by_hand(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("'*.mlp.*': [0, 1, 0.5]\n'*.layers.*': [1, 0]\n'*': 2\n")
    found = choose_ratios(WEIGHTS, 9.0, read_layer_ratios(file, False))
    # layers 0 to 5 of six: places 0, .2, .4, .6, .8, 1; [0, 1, .5] rises to 1 at .5 and falls to .5
    mlp = [found[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(6)]
    assert mlp == pytest.approx([0, 0.4, 0.8, 0.9, 0.7, 0.5])
    attention = [found[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in range(6)]
    assert attention == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert found["lm_head.weight"] == 2.0
    assert interpolate([3.0, 5.0], 0.5) == 4.0


def test_gradient_needs_layers_and_numbers():
    with pytest.raises(ConfigError, match=r"gradient and fits 'lm_head\.weight'"):
        choose_ratios(WEIGHTS, 1.0, [("*", [0.0, 1.0])])
    for value in ([], [1.0], [0.5, "x"], [0.5, float("nan")], [0.5, -1]):
        with pytest.raises(ConfigError, match=r"layer_ratios: \*"):
            read_layer_ratios([("*", value)], allow_negative=False)
    assert choose_ratios(["m.layers.0.w"], 1.0, [("*", [0.25, 1.0])]) == {"m.layers.0.w": 0.25}
