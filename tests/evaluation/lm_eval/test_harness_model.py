"""The actors as lm-eval sees them, against one forward pass a token through models that stock libraries load."""

import itertools
import json
import shutil

import pytest
import torch
from lm_eval.api.instance import Instance
from peft import PeftModel
from tokenizer_kinds import CHATML, KINDS
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken

from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import PROMPT_TEMPLATE
from lite_c2f.data.chat_template import chat_template
from lite_c2f.data.encode import encode_chat, leading_ids
from lite_c2f.data.records import Turn
from lite_c2f.evaluation.actor_names import source_of
from lite_c2f.evaluation.lm_eval import model as harness
from lite_c2f.evaluation.lm_eval.conversations import as_jinja
from lite_c2f.evaluation.lm_eval.scores import metric_names
from lite_c2f.runs.manifest import open_run

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
SHORT = ("data.max_prompt_tokens=16", "data.max_answer_tokens=16", "coarse.length.start=8", "coarse.length.max=32")
ACTORS = ("base", "coarse", "instruct", "fine", "fine@2", "fine@0.5")
PAIRS = [  # contexts and continuations of different lengths, so that rows are padded
    ("w1 w2 w3", " w4"),
    ("w1 w2 w3", " w5"),
    ("w1", " w6 w7 w8"),
    ("w9 w10 w11 w12 w13 w14", " w15 w16"),
    ("", "w17 w18"),
]


def plain_model(run, actor, quantization):
    """The same actor by stock PEFT on the same weights."""
    config, models = open_run(run)
    config = load_config(config.model_dump(), [f"model.quantization={quantization}"])
    if actor == "fine":
        return load_model(str(run / "fine" / "model"), config), load_tokenizer(models.instruct)
    folder = models.base if actor in ("base", "coarse") else models.instruct
    model = load_model(folder, config)
    if actor in ("coarse", "fine@2", "fine@0.5"):
        model = PeftModel.from_pretrained(model, str(run / "coarse" / "adapter")).eval()
        share = 1.0 if actor == "coarse" else float(actor.removeprefix("fine@"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data *= share
    return model, load_tokenizer(folder)


@torch.no_grad()
def next_token(model, ids):
    """Log-probabilities of what follows these ids: (vocabulary,)."""
    return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def loaded(run, actor, quantization, chat=False):
    config, models = open_run(run)
    config = load_config(config.model_dump(), [f"model.quantization={quantization}"])
    return harness.load_actor(source_of(actor), config, models, run, [actor], chat)


def instances(kind, arguments):
    return [Instance(kind, {}, given, place) for place, given in enumerate(arguments)]


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("actor", ACTORS)
def test_loglikelihoods_are_sums_over_single_tokens(finished_pico, actor, quantization):
    plain, tokenizer = plain_model(finished_pico, actor, quantization)
    expected = []
    for context, following in PAIRS:
        ids = tokenizer.encode(context, add_special_tokens=False) or [tokenizer.bos_token_id]
        total, greedy = 0.0, True
        for token in tokenizer.encode(following, add_special_tokens=False):
            found = next_token(plain, ids)
            total, greedy = total + float(found[token]), greedy and int(found.argmax()) == token
            ids = [*ids, token]
        expected.append((total, greedy))
    mine = loaded(finished_pico, actor, quantization)
    mine.model.batch_size_per_gpu = 3
    with mine.acting_as(actor):
        found = mine.model.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=2e-4)
    assert [row[1] for row in found] == [row[1] for row in expected]


def test_actors_differ_by_more_than_the_tolerance(finished_pico):
    """Without this the test above would pass with any adapter active."""
    found = {}
    for actor in ACTORS:
        plain, tokenizer = plain_model(finished_pico, actor, "none")
        found[actor] = float(next_token(plain, tokenizer.encode("w1 w2 w3", add_special_tokens=False))[4])
    figures = sorted(found.values())
    apart = [b - a for a, b in itertools.pairwise(figures)]
    assert sorted(apart)[1] > 2e-3  # `fine` and `fine@2` are the same model
    assert found["fine"] == pytest.approx(found["fine@2"], abs=1e-5)


@pytest.mark.parametrize("actor", ["base", "coarse", "instruct", "fine@2"])
def test_answers_are_greedy_until_the_stop(finished_pico, actor):
    """Prompts of different lengths in one batch; the folder's own generation_config would end at 7 tokens."""
    plain, tokenizer = plain_model(finished_pico, actor, "nf4")
    prompts, limit = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9", "w30 w31"], 12
    said = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        new = []
        while len(new) < limit and (not new or new[-1] != tokenizer.eos_token_id):
            new.append(int(next_token(plain, ids + new).argmax()))
        said.append(tokenizer.decode(new, skip_special_tokens=True))
    longest = max(said, key=lambda text: len(text.split()))
    assert len(longest.split()) > 7
    stop = longest.split()[4]
    mine = loaded(finished_pico, actor, "nf4")
    mine.model.batch_size_per_gpu = 4
    for until in ([], [stop]):
        given = {"until": until, "max_gen_toks": limit, "do_sample": False, "temperature": 0.0}
        with mine.acting_as(actor):
            found = mine.model.generate_until(
                instances("generate_until", [(prompt, given) for prompt in prompts]), disable_tqdm=True
            )
        expected = [text.split(stop)[0] if until else text for text in said]
        assert [text.strip() for text in found] == [text.strip() for text in expected]


def test_a_base_model_is_asked_as_it_was_trained(finished_pico):
    mine = loaded(finished_pico, "coarse", "none", chat=True)
    turns = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    text = mine.model.apply_chat_template(turns)
    assert text == "\n\nHuman: w1\n\nAssistant: w2\n\nHuman: w3\n\nAssistant:"
    assert mine.model.stops == ["\n\nHuman:"]
    assert mine.model.tok_encode("w1 w3") == [4, 6]  # this tokenizer puts no BOS before a text


SPEAKING = {"chatml": ("qwen", CHATML), "llama": ("sentencepiece", LLAMA), "hh": ("neox", None), "bos": ("bos", None)}


@pytest.fixture
def speaker(pico):
    """Of a tokenizer in one of these forms; the model behind it does nothing here."""

    def make(form):
        kind, template = SPEAKING[form]
        tokenizer = KINDS["llama3" if kind == "bos" else kind]()
        if kind == "bos":  # Llama-3's own puts it there
            bos = (tokenizer.bos_token, tokenizer.bos_token_id)
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        first = [] if template else leading_ids(tokenizer)
        tokenizer.chat_template = template or as_jinja(PROMPT_TEMPLATE)
        model = load_model(str(pico["base"]), load_config({}, ["model.quantization=none", *SHORT]))
        return harness.ActorLM(model, tokenizer, [2], template=chat_template(tokenizer), first=first)

    return make


def own_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("answer", ["is", " is"])  # as multiple choices have it here, and targets of other tasks
@pytest.mark.parametrize("form", SPEAKING)
def test_choices_follow_prompts_as_answers_do(speaker, form, answer):
    lm = speaker(form)
    tokenizer, question = lm.tokenizer, [{"role": "user", "content": "Why?"}]
    context = lm.apply_chat_template(question)
    prompt, choice = lm._encode_pair(context, answer)
    if SPEAKING[form][1]:
        whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": "is"}], return_dict=False)
        assert prompt + choice == whole[: len(prompt + choice)]
        assert tokenizer.decode(whole[len(prompt + choice) :]).strip() in ("<|im_end|>", "</s>")
    else:
        text = "\n\nHuman: Why?\n\nAssistant:"
        first = [0] if form == "bos" else []  # <|begin_of_text|>; Pythia's kind puts none before a text
        assert prompt == [*first, *own_ids(tokenizer, text)]
        assert prompt + choice == [*first, *own_ids(tokenizer, f"{text} is")]
    begun = lm.apply_chat_template([*question, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
    prompt, choice = lm._encode_pair(begun, " is")  # the answer has begun with a task's own prefix
    if SPEAKING[form][1]:
        whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": "It is"}], return_dict=False)
        assert prompt + choice == whole[: len(prompt + choice)]
    else:
        assert prompt + choice == [*first, *own_ids(tokenizer, f"{text} It is")]


def test_requests_of_a_batch_are_encoded_as_they_are_alone(speaker):
    lm = speaker("chatml")
    turns = [[{"role": "user", "content": text}] for text in ("Why<|im_end|>?", "Human: is it?")]
    texts = [lm.apply_chat_template(each) for each in turns]
    tokens, mask = lm.tok_batch_encode(texts, left_truncate_len=99)
    alone = [encode_chat(lm.tokenizer, [Turn("human", each[0]["content"])], 99) for each in turns]
    assert [row[kept.bool()].tolist() for row, kept in zip(tokens, mask, strict=True)] == alone
    assert all(row.count(2) == 1 for row in alone) and mask[:, -1].all()  # what is written closes no turn
    shorter, _ = lm.tok_batch_encode(texts, left_truncate_len=7)
    assert shorter.tolist() == [row[-7:] for row in alone] and lm.truncated == 2


def test_a_stop_of_the_base_ends_its_answers(finished_pico):
    mine = loaded(finished_pico, "base", "none")
    given = ("w1 w2", {"until": [], "max_gen_toks": 12, "do_sample": False})
    with mine.acting_as("base"):
        (whole,) = mine.model.generate_until(instances("generate_until", [given]), disable_tqdm=True)
        mine.model.stops = [whole.split()[3]]
        (cut,) = mine.model.generate_until(instances("generate_until", [given]), disable_tqdm=True)
    assert cut == whole.split(mine.model.stops[0])[0] != whole


def test_prompts_that_lose_their_beginning_are_counted(finished_pico):
    mine = loaded(finished_pico, "base", "none")
    long, short = " ".join(["w1"] * 70), "w1 w2"  # the context of the pico models is 64
    with mine.acting_as("base"):
        mine.model.loglikelihood(
            instances("loglikelihood", [(long, " w3"), (short, " w3"), (" ".join(["w1"] * 64), " w3")]), True
        )
        assert mine.model.truncated == 1  # 64 and one that is predicted fit
        given = {"until": [], "max_gen_toks": 12, "do_sample": False}
        mine.model.generate_until(instances("generate_until", [(long, given), (short, given)]), True)
    assert mine.model.truncated == 2


def test_the_end_of_a_turn_ends_answers_here_and_in_the_chat(finished_pico, tmp_path, editable, edit_json):
    """`w41`, the token 44, ends turns in the instruct template; all files list 2 alone."""
    from lite_c2f.chat.loaded import LoadedActors
    from lite_c2f.chat.panes import ChatSettings, Pane

    folder, run = editable("instruct"), shutil.copytree(finished_pico, tmp_path / "run")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([AddedToken("w41", special=True)], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w41 {% endfor %}"
    tokenizer.save_pretrained(folder)
    models = json.loads((run / "run.json").read_text())["models"]
    edit_json(run / "run.json", models=models | {"instruct": str(folder)})
    actors, expected = (
        LoadedActors(run, merged=True),
        {"base": [2], "coarse": [2], "instruct": [2, 44], "fine": [2, 44]},
    )
    for actor, ends in expected.items():
        row, _ = actors.row(Pane(actor, actor), [Turn("human", "w1")], ChatSettings(max_tokens=4))
        assert row.eos_ids == ends
        if actor != "fine":  # that folder has the tokenizer from before
            assert loaded(run, actor, "none", chat=True).model.model.generation_config.eos_token_id == ends


def test_what_was_borrowed_comes_back(finished_pico):
    from lm_eval.api import task

    before = task.tqdm
    with pytest.raises(KeyboardInterrupt), harness.silence_harness():
        print("not seen")
        assert list(task.tqdm([1, 2], disable=False)) == [1, 2] and task.tqdm([1]).disable
        raise KeyboardInterrupt
    assert task.tqdm is before


def test_numbers_are_told_from_what_only_looks_like_them():
    values = [1, True, 0.5, "N/A", (1, 2), None, float("nan"), [0.5]]
    assert [harness.finite_or_none(value) for value in values] == [1.0, 1.0, 0.5, None, None, None, None, None]
    assert metric_names({"figures": {"acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": None}}) == ["acc,none"]
