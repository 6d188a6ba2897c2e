"""The evidence: its arithmetic by hand, and that docs/evidence.md says what the committed results say."""

import json
import math
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "evidence"))

import figures  # noqa: E402
import merges  # noqa: E402
import page  # noqa: E402
import smollm_page  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"


def test_an_interval_is_students_t():
    found = figures.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # variance 10 / 4, standard error sqrt(2.5 / 5), t(4 degrees, 97.5%) = 2.776
    assert found.mean == 3.0 and found.half == pytest.approx(2.776 * math.sqrt(0.5))
    assert found.text(1) == "3.0 ± 2.0" and found.text(1, sign=True) == "+3.0 ± 2.0"
    assert math.isnan(figures.interval([1.0]).half)
    assert not figures.surely(figures.interval([1.0])) and figures.surely(figures.Interval(-1.0, 0.9))
    assert not figures.surely(figures.Interval(0.5, 0.6))


def test_differences_are_paired():
    left, right = {0: 1.0, 1: 2.0, 2: 9.0}, {2: 8.0, 1: 1.0, 0: 0.0}
    assert figures.difference(left, right) == figures.Interval(1.0, 0.0)


LONG = {"curve": [[100, 0.0], [200, 0.6], [300, 0.9], [400, 1.0], [500, 1.1]], "tokens": 500}
SLOW = {"curve": [[50, 0.0], [350, 0.5], [450, 0.96]], "tokens": 450}


def test_when_a_run_has_learned():
    assert figures.final_reward(LONG) == pytest.approx(1.05)  # of the last two points
    # 0.9 of the rise from 0 to 1.05 is 0.945: between 0.9 at 300 and 1.0 at 400
    assert figures.learned_at(LONG, LONG) == pytest.approx(300 + 100 * 0.045 / 0.1)
    assert figures.learned_at(SLOW, LONG) == pytest.approx(350 + 100 * 0.445 / 0.46)
    assert figures.learned_at({"curve": SLOW["curve"][:2]}, LONG) == math.inf
    assert figures.first_tokens(SLOW, 0.73) == pytest.approx(350 + 100 * 0.5)
    assert figures.first_tokens(SLOW, -1.0) == 50
    lucky = {"curve": [[10, 0.0], [20, 1.0], [30, 0.5], [40, 1.0], [50, 1.0]]}
    assert figures.first_tokens(lucky, 0.75) == 35.0  # the one at 20 did not stay
    assert figures.resampled(LONG, [100, 150, 450, 900]) == pytest.approx([0.0, 0.3, 1.05, 1.1])


def test_tables_name_who_never_learned():
    jobs = [
        {"world": "toy", "seed": seed, "name": name, **run}
        for seed in (0, 1)
        for name, run in (("fixed-long", LONG), ("logistic", SLOW if seed else {"curve": [[50, 0.0]], "tokens": 50}))
    ]
    assert page.learned_text(jobs, "toy", "fixed-long") == "0.3 ± 0.0"
    assert page.learned_text(jobs, "toy", "logistic") == "1 of 2 seeds"
    assert page.share_text(jobs, "toy") == "never"
    assert page.saved_text(jobs, "toy") == "more (in 1 of 2 seeds it never had)"
    assert page.speed_text(jobs, "toy", "fixed-long") == "not in every seed"


def test_an_unknown_figure_is_not_left_in_the_page():
    assert page.filled("a {{b}} c", {"b": "1"}) == "a 1 c"
    with pytest.raises(KeyError):
        page.filled("{{nobody}}", {})


def test_slerp_is_on_the_arc():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(merges.slerp(one, one, other, 0.5), torch.tensor([0.5, 0.5]).sqrt())
    torch.testing.assert_close(merges.slerp(one, one, 2 * one, 0.25), torch.tensor([1.25, 0.0]))
    torch.testing.assert_close(merges.average(one, one, other, 0.25), torch.tensor([0.75, 0.25]))


def test_ties_and_dare_add_task_vectors_to_the_base():
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    coarse, instruct = base + torch.tensor([4.0, 0.1, -3.0, 0.2]), base + torch.tensor([0.1, 2.0, 5.0, 0.1])
    # the larger half of each: coarse 4, -3; instruct 2, 5; at the third the sum decides for instruct
    torch.testing.assert_close(merges.by_ties(base, instruct, coarse, 1.0), base + torch.tensor([4.0, 2.0, 5.0, 0.0]))
    torch.manual_seed(0)
    dropped = torch.stack([merges.by_dare(base, instruct, coarse, 0.5) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(dropped, base + 0.5 * (coarse - base) + (instruct - base), atol=0.2, rtol=0)


def results():
    if not RESULTS.is_file():
        pytest.skip("no results are committed")
    return json.loads(RESULTS.read_text())


def test_the_page_is_made_of_the_committed_results(tmp_path):
    real, quantized = (
        json.loads(RESULTS.with_name(f"evidence_smollm2{kind}.json").read_text()) for kind in ("", "_nf4")
    )
    page.make_page(results(), real, quantized, tmp_path)
    assert (tmp_path / "evidence.md").read_text() == (ROOT / "docs" / "evidence.md").read_text()
    for plot in ("evidence-cm.svg", "evidence-krm.svg"):
        assert (tmp_path / plot).read_text() == (ROOT / "docs" / plot).read_text()
        assert plot in (tmp_path / "evidence.md").read_text()


def test_actors_of_the_real_model_and_their_differences_by_hand():
    def figures(reward):
        return {"rewards": [reward, reward + 1.0], "lengths": [3, 3], "reward": reward + 0.5}

    jobs = [
        {"world": "smollm2", "seed": 0, "name": "actors", "base": figures(0.0), "instruct": figures(1.0)},
        {"world": "smollm2", "seed": 0, "name": "logistic", "coarse": figures(2.0)},
        {"world": "smollm2", "seed": 0, "name": "dpo", "coarse": figures(4.0)},
        {"world": "smollm2", "seed": 0, "name": "logistic at 1", "fine": figures(3.0)},
        {"world": "smollm2", "seed": 0, "name": "dpo at 0.75", "fine": figures(9.0)},
    ]
    actors = smollm_page.actors_of(jobs)
    assert {name: actor[0]["reward"] for name, actor in actors.items()} == {
        "base": 0.5,
        "instruct": 1.5,
        "logistic": 2.5,
        "dpo": 4.5,
        "logistic at 1": 3.5,
        "dpo at 0.75": 9.5,
        "coarse": 2.5,
        "fine": 3.5,
    }
    # Differences 2 and 5: mean 3.5, standard deviation 3 / sqrt(2), its error over two questions 1.5.
    assert smollm_page.paired([3.0, 6.0], [1.0, 1.0], 2) == "+3.50 ± 1.50"
    assert smollm_page.spread({0: 0.25, 1: 0.75, 2: 0.5}, 2) == "0.50 (0.25 to 0.75)"
    assert smollm_page.spread({4: 0.25}, 2) == "0.25"


def test_every_run_spent_its_budget_and_little_more():
    from worlds import WORLDS

    for job in results()["jobs"]:
        if "curve" in job:
            budget = WORLDS[job["world"]].budget
            assert budget <= job["tokens"] < 1.15 * budget, (job["world"], job["seed"], job["name"])
            assert job["updates"] == len(job["training"])
            assert mean(row[1] for row in job["training"]) <= WORLDS[job["world"]].longest


@pytest.mark.slow
def test_one_arm_from_beginning_to_end(toy_models, tmp_path, monkeypatch):
    """A reward model, a short PPO run and the merges, as the evidence does them."""
    import arms
    import worlds

    setting = worlds.WORLDS["toy"]
    monkeypatch.setitem(worlds.WORLDS, "toy", setting._replace(budget=2500))
    monkeypatch.setattr(merges, "METHODS", {"average": (merges.average, (0.25,))})
    monkeypatch.setattr(merges, "RATIOS", (1.0,))
    monkeypatch.setattr(merges, "TREATED", {"krm": merges.TREATED["krm"]})
    monkeypatch.setattr(worlds, "TOY_PAIRS", 320)
    rewards = tmp_path / "reward"
    assert arms.train_reward_model("toy", 0, rewards)["accuracy"] > 0.5
    found = arms.run_arm("toy", 0, "logistic", tmp_path / "logistic", rewards)
    assert found["tokens"] >= 2500 and found["training"][0][1] == 16 and len(found["curve"]) >= 2
    assert set(found["final"]) >= {"reward", "accuracy", "tokens", "eos"}
    assert arms.run_arm("toy", 0, arms.INSTRUCT, tmp_path / "direct", rewards)["final"]["eos"] > 0.5
    merged = merges.run_merges("toy", 0, tmp_path / "logistic", tmp_path / "direct", rewards, tmp_path / "merges")
    assert set(merged["second_judge"]) == {"fine", "direct"}
    assert merged["krm"]["chosen"] == 1.0 and merged["average"]["final"]["tokens"] > 0
    assert not (tmp_path / "merges").exists()
