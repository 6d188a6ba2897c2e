"""What was merged decides what the Fine Actor is."""

import json

import pytest

from lite_c2f.chat.cast import merged_ratio
from lite_c2f.errors import RunError


def test_ratios_by_layer_are_no_single_ratio(tmp_path):
    file = tmp_path / "merge.json"
    file.write_text(json.dumps({"ratio": 0.5, "layer_ratios": []}))
    assert merged_ratio(file) == (0.5, True)
    file.write_text(json.dumps({"ratio": 0.5, "layer_ratios": [["*.mlp.*", 1.0]]}))
    assert merged_ratio(file) == (0.5, False)


@pytest.mark.parametrize("text", ["{}", "[]", '{"ratio": null}', "1"])
def test_a_report_without_a_ratio_is_refused(tmp_path, text):
    (tmp_path / "merge.json").write_text(text)
    with pytest.raises(RunError, match="no ratio"):
        merged_ratio(tmp_path / "merge.json")
