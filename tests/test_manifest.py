"""What may change between two commands on the same run."""

import json

import pytest

from lite_c2f.config import load_config
from lite_c2f.errors import RunError
from lite_c2f.manifest import check_run


@pytest.fixture
def run(tmp_path):
    """A run whose reward stage is published."""
    (tmp_path / "config.yaml").write_text(load_config({}, ["reward.micro_batch=8"]).to_yaml())
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "metrics.json").write_text(json.dumps({"accuracy": 0.9, "mean": 0.0, "std": 1.0}))
    return tmp_path


@pytest.mark.parametrize(
    "change", [["reward.micro_batch=auto"], ["reward.micro_batch=2"], ["hardware.vram_gib=12"], ["coarse.updates=7"]]
)
def test_what_only_memory_and_later_stages_depend_on_may_change(run, change):
    check_run(run, load_config({}, ["reward.micro_batch=8", *change]))


@pytest.mark.parametrize("change", ["reward.lr=0.5", "reward.batch=64", "lora.r=4", "data.truncated=0.5"])
def test_what_a_published_stage_was_made_with_may_not(run, change):
    with pytest.raises(RunError, match=change.split("=")[0].replace(".", r"\.")):
        check_run(run, load_config({}, [change]))
