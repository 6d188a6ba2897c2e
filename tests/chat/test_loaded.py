"""What was merged decides what the Fine Actor is."""

import json

import pytest

from lite_c2f.backbone.load import load_model
from lite_c2f.chat.loaded import context_of
from lite_c2f.config.loading import load_config
from lite_c2f.errors import RunError
from lite_c2f.runs.published import merged_ratio


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


@pytest.mark.parametrize(
    ("window", "left", "context"),
    [
        (None, None, 64),  # the model's positions
        (4096, None, 64),
        (50, None, 50),  # no training row is longer, so it is loaded without; a chat's might be
        (40, 40, 64),  # loaded with it: the cache keeps to it
    ],
)
def test_a_chat_is_no_longer_than_the_window_a_model_was_trained_with(editable, edit_json, window, left, context):
    folder = editable("base")
    edit_json(folder / "config.json", sliding_window=window)
    settings = ["data.max_prompt_tokens=16", "data.max_answer_tokens=16", "coarse.length.max=32"]
    settings += ["coarse.length.start=8", "fine.max_tokens=32", "evaluation.max_tokens=32"]
    model = load_model(str(folder), load_config({}, settings))
    assert model.config.sliding_window == left
    assert context_of([model, model], str(folder)) == context
