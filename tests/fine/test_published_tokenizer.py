"""What is published reads text as the instruct model does, and lists the end of its turns, whoever merges."""

import json
import shutil

import pytest
from tokenizer_kinds import KINDS, made
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig

from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.fine import shards
from lite_c2f.fine.merge import merge
from lite_c2f.fine.tokenizer import TEXTS, check_tokenizer, load_own_tokenizer

TURNS = "{% for m in messages %} {{ m.content }} w41 {% endfor %}"  # ends a turn with the token 44


@pytest.fixture
def chatty(editable):
    """Base and instruct model whose chat template ends a turn with a control token of both."""
    folders = editable("base"), editable("instruct")
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([AddedToken("w41", special=True)], special_tokens=True)
        tokenizer.chat_template = TURNS
        tokenizer.save_pretrained(folder)
    return folders


@pytest.mark.parametrize(("listed", "ends"), [(2, [2, 44]), ([2, 44], [2, 44]), (None, [2, 44])])
def test_the_end_of_a_turn_is_listed_by_merge_alone(tmp_path, pico, chatty, call, listed, ends):
    base, instruct = chatty
    if listed is None:
        (instruct / "generation_config.json").unlink()
    else:
        (instruct / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    folders = {"adapter": pico["adapter"], "base": base, "instruct": instruct, "out": tmp_path / "out"}
    code, _, errors = call("merge", *(f"--{name}={folder}" for name, folder in folders.items()))
    assert code == 0, errors
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == ends
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert report["end_token"] == (None if listed == [2, 44] else 44)


def test_the_stage_and_merge_publish_the_same_end(tmp_path, pico, chatty):
    """The variables of the template are the run's: the stage hands over what it found, and None where it found none."""
    from lite_c2f.backbone.end_tokens import unlisted_turn_end

    base, instruct = chatty
    end = unlisted_turn_end(AutoTokenizer.from_pretrained(instruct), instruct, {"enable_thinking": False})
    assert end == 44
    reports = [merge(pico["adapter"], base, instruct, tmp_path / str(end), end_token=end) for end in (44, None)]
    auto = merge(pico["adapter"], base, instruct, tmp_path / "auto")
    assert [report.end_token for report in (*reports, auto)] == [44, None, 44]
    files = [(tmp_path / name / "generation_config.json").read_bytes() for name in ("44", "None", "auto")]
    assert files[0] == files[2] != files[1] == (instruct / "generation_config.json").read_bytes()


def test_an_end_token_in_words_is_refused(tmp_path, pico):
    with pytest.raises(ConfigError, match="'end_token' is '</s>'"):
        merge(pico["adapter"], pico["base"], pico["instruct"], tmp_path / "out", end_token="</s>")


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}"])
def test_a_template_that_is_missing_or_fails_lists_nothing(tmp_path, pico, editable, template):
    instruct = editable("instruct")
    (instruct / "chat_template.jinja").unlink()
    if template is not None:
        (instruct / "chat_template.jinja").write_text(template)
    assert merge(pico["adapter"], pico["base"], instruct, tmp_path / "out").end_token is None


def edit(folder, old, new):
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace(old, new))


def replaces_a_number(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(
        json.dumps(content | {"normalizer": {"type": "Replace", "pattern": {"String": "007"}, "content": "w8"}})
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "chat_template.jinja").write_text(TURNS), "a conversation"),
        (lambda folder: (folder / "chat_template.jinja").unlink(missing_ok=True), "a conversation"),
        (lambda folder: edit(folder, '"w7"', '"v7"'), "its vocabulary"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "its files"),
        (replaces_a_number, "007"),
    ],
)
def test_a_folder_that_reads_otherwise_is_not_published(tmp_path, pico, monkeypatch, change, named):
    copy = shards.copy_files

    def copied(source, target, files):
        copy(source, target, files)
        if (target / "tokenizer.json").is_file():
            change(target)

    monkeypatch.setattr(shards, "copy_files", copied)
    with pytest.raises(ModelError, match="merged folder's tokenizer") as error:
        merge(pico["adapter"], pico["base"], pico["instruct"], tmp_path / "out")
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_every_kind_agree_with_their_copies(tmp_path, kind):
    made(kind).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    check_tokenizer(load_own_tokenizer(tmp_path / "a"), tmp_path / "b", tmp_path / "a")
    file = tmp_path / "b" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"], content["normalizer"] = {"type": "Digits", "individual_digits": True}, None
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="differs from that of"):  # spaces are read otherwise
        check_tokenizer(load_own_tokenizer(tmp_path / "a"), tmp_path / "b", tmp_path / "a")


def test_the_same_ids_that_decode_to_another_text_are_refused(tmp_path):
    made("sentencepiece").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder": None}))
    text = TEXTS[0]
    assert load_own_tokenizer(tmp_path)(text)["input_ids"] == made("sentencepiece")(text)["input_ids"]
    with pytest.raises(ModelError, match=r"differs from that of .*: the text of \["):
        check_tokenizer(made("sentencepiece"), tmp_path, tmp_path)


def test_texts_have_what_tokenizers_differ_in():
    text = "".join(TEXTS)
    assert (
        "  " in text
        and "\n\n" in text
        and "\t" in text
        and "</s>" in text
        and any(ord(letter) > 0xFFFF for letter in text)
    )
