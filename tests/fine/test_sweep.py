"""The choice of a ratio by paired differences, and what is reported where no ratio ends its responses; by hand."""

import json
from pathlib import Path

import pytest

from lite_c2f.actors.answers import min_eos_message
from lite_c2f.cli.merge import parse_ratios
from lite_c2f.cli.tables import ratio_table
from lite_c2f.config.loading import load_config
from lite_c2f.evaluation.page import Text
from lite_c2f.evaluation.sections import ratios
from lite_c2f.fine import stage
from lite_c2f.fine.chart import reward_errors
from lite_c2f.fine.sweep import RatioTrial, choose, sweep
from lite_c2f.runs.model_pair import ModelPair


def trial(rewards, eos=1.0):
    return RatioTrial(
        {"reward": sum(rewards) / len(rewards), "reward_se": 0.0, "eos": eos}, [float(r) for r in rewards]
    )


class Bench:
    """Stands in for the models: what each ratio gave is known."""

    def __init__(self, trials):
        self.trials = trials

    def measure(self, ratio):
        return self.trials[ratio]


INSTRUCT = trial([0, 0, 0, 0])


@pytest.mark.parametrize(
    ("trials", "ratio"),
    [
        # Prompts differ by 10 and more, the ratios by exactly 1 on every prompt: clearly worse. The standard error of
        # the best mean is 6.5, within which 0.5 would lie.
        ({0.5: trial([0, 10, 20, 30]), 1.0: trial([1, 11, 21, 31])}, 1.0),
        # Differences -2, 2, -1, 2: mean 0.25, standard deviation sqrt(12.75 / 3), standard error 1.03: not clearly
        # worse. The best's own standard error is 0.
        ({0.5: trial([3, -1, 2, -1]), 1.0: trial([1, 1, 1, 1])}, 0.5),
        # Differences 0, 0, 0, 4 to the best: mean 1, standard deviation 2, standard error 1: just within it
        ({0.5: trial([1, 1, 1, 1]), 1.0: trial([1, 1, 1, 5])}, 0.5),
        # 0.25 is worse on every prompt; 0.5 wins one and loses one
        ({0.25: trial([0, 0]), 0.5: trial([3, 1]), 1.0: trial([1, 4])}, 0.5),
        ({1.0: trial([1, 4]), 0.5: trial([3, 1]), 0.25: trial([0, 0])}, 0.5),  # whatever the order
        ({0.5: trial([1, 2]), 1.0: trial([1, 2])}, 0.5),  # the same answers
        ({0.0: trial([9, 9]), 0.5: trial([1, 1]), 1.0: trial([2, 2], 0.96)}, 1.0),  # ratio 0 is never chosen
        ({0.5: trial([1, 1]), 1.0: trial([2, 2], 0.94)}, 0.5),  # does not end often enough
    ],
)
def test_the_smallest_ratio_that_is_not_measurably_behind_the_best(trials, ratio):
    choice = choose(trials, 0.95)
    assert choice.ratio == ratio and choice.eligible


def test_every_row_has_its_paired_difference_to_the_best():
    """1.0 is the best (mean 16). 0.5: 1 behind on every prompt. 0: differences 1, 11, 21, 31, mean 16, standard
    deviation sqrt(500 / 3), standard error 6.455. 2.0 has a higher reward but does not end."""
    trials = {0.0: INSTRUCT, 0.5: trial([0, 10, 20, 30]), 1.0: trial([1, 11, 21, 31]), 2.0: trial([2, 12, 22, 32], 0.5)}
    result = sweep(Bench(trials), [0.5, 1.0, 2.0], 0.95)
    assert result["chosen"] == 1.0 and result["reached"] is True
    rows = {row["ratio"]: (row["behind"], row["behind_se"]) for row in result["tried"]}
    assert rows == {0.0: (16.0, 6.455), 0.5: (1.0, 0.0), 1.0: (0.0, 0.0), 2.0: (-1.0, 0.0)}
    assert "paired difference" in result["rule"] and min_eos_message(result) is None


UNENDED = {0.0: INSTRUCT, 0.5: trial([1, 1, 1, 1], 0.2), 1.0: trial([3, 3, 3, 3], 0.1)}
SHARES = "no ratio reaches fine.min_eos=0.95: the share of responses that ended is 0.200 at 0.5, 0.100 at 1; took 0.5"


def test_where_no_ratio_ends_often_enough_that_is_reported():
    result = sweep(Bench(UNENDED), [0.5, 1.0], 0.95)
    assert result["chosen"] == 0.5 and result["reached"] is False
    assert min_eos_message(result).startswith(SHARES)
    assert sweep(Bench(UNENDED), [0.5, 1.0], 0.2)["reached"] is True  # at the share itself it is reached
    same = {0.5: trial([1, 1], 0.2), 1.0: trial([3, 3], 0.2), 2.0: trial([3, 3], 0.2)}
    assert choose(same, 0.95).ratio == 1.0  # by reward, then the smaller


def test_the_sweep_prints_that_no_ratio_is_reached(capsys):
    ratio_table(sweep(Bench(UNENDED), [0.5, 1.0], 0.95), Path("runs/x"))
    assert f"warning: {SHARES}" in capsys.readouterr().out
    reached = {**UNENDED, 1.0: trial([3, 3, 3, 3])}
    ratio_table(sweep(Bench(reached), [0.5, 1.0], 0.95), Path("runs/x"))
    assert "warning" not in capsys.readouterr().out


def test_the_stage_notes_it_and_writes_it_down(pico, tmp_path, monkeypatch):
    notes = []

    class View:
        def on_stage(self, *_): ...
        def on_step(self, *_): ...
        def on_message(self, text):
            notes.append(text)

    merged = {}
    monkeypatch.setattr(stage, "RatioTrials", lambda *_: Bench(UNENDED))
    monkeypatch.setattr(stage, "merge", lambda *_, **settings: merged.update(settings))
    config = load_config({}, ["fine.ratios=[0.5,1.0]"])
    stage.make_fine(config, ModelPair(str(pico["base"]), str(pico["instruct"])), None, tmp_path, View())
    assert "<svg" in (tmp_path / "fine" / "ratios.svg").read_text()
    assert any(note.startswith(f"warning: {SHARES}") for note in notes) and merged["ratio"] == 0.5
    assert json.loads((tmp_path / "fine" / "ratios.json").read_text())["reached"] is False
    assert any(isinstance(block, Text) and SHARES in str(block) for block in ratios(tmp_path))


def test_files_of_earlier_versions_still_open(tmp_path, capsys):
    """No "reached", no "behind": the shares are there all the same."""
    row = {"reward": 0.1, "reward_se": 0.1, "tokens": 5.0}
    tried = [{"ratio": 0.0, **row, "eos": 1.0}, {"ratio": 0.5, **row, "eos": 0.2}, {"ratio": 1.0, **row, "eos": 0.1}]
    before = {"rule": "within one standard error", "min_eos": 0.95, "chosen": 0.5, "tried": tried}
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "ratios.json").write_text(json.dumps(before))
    assert any(isinstance(block, Text) and SHARES in str(block) for block in ratios(tmp_path))
    assert reward_errors(tried) == [0.1, 0.1, 0.1]
    assert reward_errors([{**tried[0], "behind_se": 0.03}]) == [0.03]
    ratio_table(before, tmp_path)
    assert SHARES in capsys.readouterr().out
    assert min_eos_message({"chosen": 0.5, "rule": "best", "tried": [{"ratio": 0.5, "reward": 0.1}]}) is None


def test_ratios_from_text():
    assert parse_ratios("0.5,1") == [0.5, 1.0]
