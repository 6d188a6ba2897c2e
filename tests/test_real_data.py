"""Real preference data through all stages: that nothing breaks on real text, lengths and Unicode is the point."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HH = ROOT.parent / "shared" / "data" / "hh-rlhf" / "harmless-base-1500.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not HH.is_file(), reason="the HH-RLHF sample is not here")
def test_hh_rlhf_trains_through_all_stages(in_process, toy_models, tmp_path):
    run = tmp_path / "hh"
    done = in_process(
        "train", ROOT / "configs" / "toy.yaml", f"data.preferences=[{HH}]", "--run-dir", run, "reward.max_pairs=256",
        "reward.micro_batch=8", "coarse.updates=4", "coarse.rollouts=16", "evaluation.prompts=16", "fine.prompts=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["actors"]["fine"]) == {"reward", "tokens", "repeated_4gram", "eos"}
    saved = json.loads((run / "reward" / "metrics.json").read_text())
    assert saved["skipped_rows"] == {"empty answer": 4}
    assert (
        saved["pairs"]["prompts_truncated"] > 0
        and saved["pairs"]["turns_dropped"] > saved["pairs"]["prompts_truncated"]
    )
    assert "rows skipped: 4 empty answer" in done.stderr and "turns dropped" in done.stderr
