"""The logit lens against a model whose layers are run by hand; words and refusals."""

import json
import shutil

import pytest
import torch

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.models import InstructModel
from lite_c2f.cli.tables import print_probe
from lite_c2f.config.loading import load_config
from lite_c2f.data.encode import encode_chat
from lite_c2f.data.records import Turn
from lite_c2f.errors import DataError, RunError
from lite_c2f.evaluation.compare import merged_ratios
from lite_c2f.evaluation.extras import unwanted_words
from lite_c2f.evaluation.page import as_markdown
from lite_c2f.evaluation.probe import first_tokens, probabilities_by_layer, read_words, word_rates
from lite_c2f.evaluation.probe_stage import probe
from lite_c2f.fine.merge import merge
from lite_c2f.storage.files import write_json, write_text

PROMPTS = [(Turn("human", "w5 w9"),), (Turn("human", "w7 w8 w11 w3 w4"),), (Turn("human", "w1"),)]


@pytest.fixture
def actor(pico):
    settings = [
        "data.max_prompt_tokens=24",
        "coarse.length.max=32",
        "coarse.length.start=8",
        "evaluation.max_tokens=32",
    ]
    return InstructModel(
        load_config({}, [*settings, "model.quantization=none"]), str(pico["instruct"]), pico["adapter"]
    )


def test_every_layer_is_read_as_if_it_were_the_last(actor):
    words = ["w12", "w20", "w33"]
    wanted = [actor.tokenizer.convert_tokens_to_ids(word) for word in words]
    found = probabilities_by_layer(actor, PROMPTS, words, 0.5, 2)
    model = actor.model.get_base_model()
    expected = torch.zeros(3)
    with torch.no_grad(), actor.ratio(0.5):
        for turns in PROMPTS:
            ids = torch.tensor([encode_chat(actor.tokenizer, turns, 24)])
            captured = []
            hooks = [
                layer.register_forward_hook(lambda *given, into=captured: into.append(given[2]))
                for layer in model.model.layers
            ]
            logits = model(input_ids=ids).logits[0, -1]
            for hook in hooks:
                hook.remove()
            states = [
                model.model.embed_tokens(ids),
                *(state[0] if isinstance(state, tuple) else state for state in captured),
            ]
            for place, state in enumerate(states):
                p = model.lm_head(model.model.norm(state[0, -1])).softmax(-1)
                expected[place] += p[wanted].sum() / len(PROMPTS)
            torch.testing.assert_close(p, logits.softmax(-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=1e-5)
    without = probabilities_by_layer(actor, PROMPTS, words, 0.0, 3)
    assert without[0] == pytest.approx(found[0], abs=1e-7)  # the embeddings have no adapter
    assert abs(without[-1] - found[-1]) > 1e-4


def test_a_run_merged_at_ratios_by_layer_is_read_at_these(pico, tmp_path, capsys):
    """Against the merged weights themselves, loaded as any model is: what the probe reads is what was published."""
    run, folders = tmp_path / "run", {name: str(pico[name]) for name in ("base", "instruct")}
    shutil.copytree(pico["adapter"], run / "coarse" / "adapter")
    by_layer_ratios = [("*.layers.0.*", 3.0), ("*.mlp.*", 0.0)]
    merge(
        pico["adapter"], pico["base"], pico["instruct"], run / "fine" / "model",
        ratio=1.0, layer_ratios=by_layer_ratios, report=run / "fine" / "merge.json",
    )  # fmt: skip
    settings = ["data.max_prompt_tokens=24", "evaluation.max_tokens=8", "model.quantization=none"]
    settings += ["coarse.length.max=32", "coarse.length.start=8", "fine.max_tokens=32", "data.max_answer_tokens=32"]
    config = load_config({}, [*settings, *(f"model.{name}={folder}" for name, folder in folders.items())])
    write_text(run / "config.yaml", config.to_yaml())
    write_json(run / "coarse" / "metrics.json", {})
    write_json(run / "run.json", {"schema": 1, "models": folders, "seconds": {}})
    words, prompts = tmp_path / "words.txt", tmp_path / "prompts.jsonl"
    words.write_text("w12\nw20\n")
    prompts.write_text("".join(json.dumps({"prompt": turns[0].text}) + "\n" for turns in PROMPTS))
    result = probe(run, words, prompts)
    merged = probabilities_by_layer(InstructModel(config, str(run / "fine" / "model")), PROMPTS, ["w12", "w20"], 0.0, 3)
    assert result["layers"]["fine"] == pytest.approx(merged, rel=1e-4)
    whole = probabilities_by_layer(
        InstructModel(config, folders["instruct"], pico["adapter"]), PROMPTS, ["w12", "w20"], 1.0, 3
    )
    assert abs(whole[-1] - merged[-1]) > 0.01 * merged[-1]  # the ratios by layer make a difference that would be seen
    assert result["ratio"] == 1.0 and result["layer_ratios"]
    print_probe(result, run)
    assert "3 prompts, ratios by layer;" in capsys.readouterr().out
    write_json(run / "fine" / "merge.json", {"ratio": 1.0})
    with pytest.raises(RunError, match=r"merge\.json' has no ratio for every tensor.*train the fine stage again"):
        probe(run, words, prompts)


def test_a_weight_that_was_not_merged_has_ratio_0(tmp_path):
    write_json(tmp_path / "fine" / "merge.json", {"ratio": 0.5, "tensors": {"a.weight": {"ratio": 0.75}}})
    assert merged_ratios(tmp_path, ["a.weight", "b.weight"]) == {"a.weight": 0.75, "b.weight": 0.0}


def test_words_begin_with_these_tokens(actor):
    ids = [actor.tokenizer.convert_tokens_to_ids(word) for word in ("w12", "w20")]
    assert first_tokens(actor.tokenizer, ["w20", "w12", "w12 w13"]) == sorted(ids)
    assert first_tokens(actor.tokenizer, ["</s>"]) == []


def test_rates_count_whole_words():
    said = [
        Answer("What a Stupid question", 4, "eos", []),
        Answer("stupidity is no word of the list", 4, "eos", []),
        Answer("I'm sorry, I can't help with that.", 4, "eos", []),
        Answer("go away, please", 4, "eos", []),
    ]
    assert word_rates(said, ["stupid", "go away"]) == {"bad_words": 0.5, "refusals": 0.25}
    assert word_rates([], ["x"]) == {"bad_words": 0.0, "refusals": 0.0}


def test_lists_of_words(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("# a list\nstupid\n\n go away \nstupid\n")
    assert read_words(file) == ["stupid", "go away"]
    file.write_text("# nothing\n")
    with pytest.raises(DataError, match="no words"):
        read_words(file)
    with pytest.raises(DataError, match="No such file"):
        read_words(tmp_path / "gone.txt")


def test_the_report_shows_what_was_probed(tmp_path):
    assert unwanted_words(tmp_path) == []
    found = {
        "words": 2,
        "prompts": 5,
        "ratio": 1.0,
        "layers": {"instruct": [0.25, 0.5], "fine": [0.125, 0.0]},
        "said": {"instruct": {"bad_words": 0.2, "refusals": 0.0}, "fine": {"bad_words": 0.0, "refusals": 0.4}},
    }
    write_json(tmp_path / "evaluation" / "probe.json", found)
    text = as_markdown("x", unwanted_words(tmp_path))
    assert "| embeddings | 2.50e-01 | 1.25e-01 |" in text and "| layer 1 | 5.00e-01 | 0.00e+00 |" in text
    assert "| fine | 0.0% | 40.0% |" in text and "2 unwanted words" in text and "5 prompts" in text
    write_json(tmp_path / "evaluation" / "probe.json", {})
    with pytest.raises(RunError, match=r"probe\.json' has another form.*run `lite-c2f probe` again"):
        unwanted_words(tmp_path)
