"""A run says at its start which token ends the instruct model's turns, where its files do not list it."""

import json

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from lite_c2f.config.loading import load_config
from lite_c2f.pipeline.prepare import prepare
from lite_c2f.runtime.progress import SilentSink

SHORT = ["data.max_prompt_tokens=16", "data.max_answer_tokens=32", "coarse.length.start=8", "coarse.length.max=32"]
SHORT += ["model.stop=[]", "fine.max_tokens=32", "evaluation.max_tokens=32", "hardware.device=cpu"]
SHORT += ["model.quantization=none"]


@pytest.mark.parametrize(("listed", "said"), [(2, True), ([2, 44], False), (None, True)])
def test_an_end_that_is_not_listed_is_said(tmp_path, pico, editable, listed, said):
    rows = [{"prompt": f"w{n}", "chosen": f"w{n} w1", "rejected": "w2"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    base, instruct = editable("base"), editable("instruct")
    for folder in (base, instruct):  # of one vocabulary: `w41`, the token 44, is special in both
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([AddedToken("w41", special=True)], special_tokens=True)
        tokenizer.chat_template = "{% for m in messages %} {{ m.content }} w41 {% endfor %}"
        tokenizer.save_pretrained(folder)
    if listed is None:
        (instruct / "generation_config.json").unlink()  # config.json says 2
    else:
        (instruct / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    source = {"model": {"base": str(base), "instruct": str(instruct)}}
    config = load_config(source, [*SHORT, f"data.preferences=[{tmp_path / 'pairs.jsonl'}]"])
    work = prepare(config, tmp_path / "run", ("reward",), SilentSink(), force=False)
    assert [note for note in work.notes if "'w41' (44)" in note] == work.notes
    assert len(work.notes) == said


def test_a_copy_of_the_base_as_instruct_model_is_said_before_anything_is_trained(tmp_path, pico, editable):
    """In two folders, so that the plan, which reads no weights, cannot see it; of one folder the plan says it, once."""
    rows = [{"prompt": f"w{n}", "chosen": f"w{n} w1", "rejected": "w2"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for number, (base, instruct) in enumerate(
        [(pico["base"], editable("base")), (pico["base"],) * 2, (pico["base"], pico["instruct"])]
    ):
        source = {"model": {"base": str(base), "instruct": str(instruct)}}
        config = load_config(source, [*SHORT, f"data.preferences=[{tmp_path / 'pairs.jsonl'}]"])
        work = prepare(config, tmp_path / f"run-{number}", ("reward",), SilentSink(), force=False)
        said = [text for text in [*work.notes, *work.plan.warnings] if "the same model" in text]
        assert len(said) == (number < 2)
