"""Every form of preference data is read as docs/data.md says, from every kind of file."""

import csv
import json

import pytest
import yaml
from forms import BY_COLUMNS, EARLIER, FORMS, LEFT_OUT, PAGE, PAIR, WHY, with_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.config.data import Source
from lite_c2f.config.loading import load_config
from lite_c2f.data.records import ROWS_PER_USABLE, Pair, Turn, load_pairs, load_prompts
from lite_c2f.errors import ConfigError, DataError

GOOD_ROW = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
ALL = {form.name: form for form in (*FORMS, *BY_COLUMNS)}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path, row, nested):
    """A CSV as pandas writes it, lists and objects as text."""
    cells = {name: nested(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    return path


def pairs_of(path, columns=None):
    loaded = load_pairs([Source(path=str(path), columns=columns)])
    return [pair._replace(source="") for pair in loaded.items], loaded.skipped


@pytest.mark.parametrize("name", ALL)
def test_form_is_read_from_every_kind_of_file(tmp_path, name):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    form = ALL[name]
    parquet.write_table(pyarrow.Table.from_pylist([form.row]), tmp_path / "a.parquet")
    files = [
        jsonl(tmp_path / "a.jsonl", form.row),
        table(tmp_path / "json.csv", form.row, json.dumps),
        table(tmp_path / "python.csv", form.row, str),
        tmp_path / "a.parquet",
    ]
    for file in files:
        assert pairs_of(file, form.columns) == ([form.pair], {}), file.name
        prompts = load_prompts([Source(path=str(file), columns=form.columns)])
        assert [prompt.turns for prompt in prompts.items] == [form.pair.turns], file.name


def test_forms_of_one_pair_read_as_that_pair(tmp_path):
    same = [form.row for form in FORMS if form.pair == PAIR]
    items, skipped = pairs_of(jsonl(tmp_path / "a.jsonl", *same))
    assert items == [PAIR] * len(same) and not skipped and len(same) > 10


@pytest.mark.parametrize(("row", "reason"), LEFT_OUT, ids=[reason for _, reason in LEFT_OUT])
def test_odd_row_is_skipped_and_counted_with_its_place(tmp_path, row, reason):
    file = jsonl(tmp_path / "a.jsonl", GOOD_ROW, row, row)
    loaded = load_pairs([Source(path=str(file))])
    assert len(loaded.items) == 1
    assert loaded.skipped == {reason: 2} and loaded.first == {reason: f"{file}:2"}


def test_the_page_has_these_tables():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run `python tests/data/forms.py`"


# Refusals, and that their advice works.


@pytest.mark.parametrize("name", [form.name for form in BY_COLUMNS if form.known])
def test_advice_of_a_refusal_reads_the_data(tmp_path, name):
    form = ALL[name]
    file = jsonl(tmp_path / "a.jsonl", form.row)
    with pytest.raises(DataError) as caught:
        load_pairs([Source(path=str(file))])
    message = str(caught.value)
    assert "\n" not in message and all(column in message for column in form.row)
    setting = message.partition("name the columns: ")[2].strip('"')
    sources = load_config(None, [setting]).data.preferences
    assert [pair._replace(source="") for pair in load_pairs(sources).items] == [form.pair]
    assert sources == load_config(yaml.safe_load(load_config(None, [setting]).to_yaml())).data.preferences


def test_advice_for_prompts_reads_them(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"id": 1, "text": "Why?"})
    with pytest.raises(
        DataError, match=r"no prompt: 1, first at .*p\.jsonl:1\), its columns are id \(a number\)"
    ) as error:
        load_prompts([Source(path=str(file))])
    config = load_config(None, [str(error.value).partition("name the columns: ")[2].strip('"')])
    assert [prompt.turns for prompt in load_prompts(config.data.prompts).items] == [WHY]


def test_source_is_refused_only_when_almost_nothing_is_left(tmp_path):
    odd = {"prompt": "Why?", "chosen": 1, "rejected": 2}
    loaded = load_pairs([Source(path=str(jsonl(tmp_path / "a.jsonl", GOOD_ROW, *[odd] * (ROWS_PER_USABLE - 1))))])
    assert len(loaded.items) == 1 and loaded.skipped == {"'chosen' is a number": ROWS_PER_USABLE - 1}
    good, bad = tmp_path / "good.jsonl", jsonl(tmp_path / "b.jsonl", *[odd] * ROWS_PER_USABLE, GOOD_ROW)
    sources = [Source(path=str(jsonl(good, GOOD_ROW))), Source(path=str(bad))]
    with pytest.raises(DataError, match=rf"b\.jsonl': 1 of 21 rows .*'chosen' is a number: 20, first at {bad}:1"):
        load_pairs(sources)


def test_columns_that_are_not_there_are_named(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", GOOD_ROW)
    with pytest.raises(DataError, match=r"no 'answer': 1.*its columns are prompt \(text\).*correct `columns`"):
        load_pairs([Source(path=str(file), columns={"chosen": "answer"})])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("{promt: a}", "unknown key 'data.preferences.0.columns.promt'; expected 'prompt' (did you mean that?)"),
        ("{best: a}", "columns.best needs columns.answers"),
        ("{answers: [a, b]}", "one of best, rank and score"),
        ("{answers: [a, b], best: c, chosen: d}", "no chosen or rejected"),
        ("{answers: [a, b, c], best: d}", "best compares two columns"),
        ("{answers: [a, b], rank: c}", "a column for each"),
        ("{answers: a, score: [b, c]}", "name one column"),
        ("{answers: a, best: b, values: [1]}", "two entries"),
        ("{answers: a, score: b, values: [1, 0]}", "columns.values needs columns.best"),
    ],
)
def test_wrong_columns_setting(columns, words):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"data.preferences=[{{path: a.jsonl, columns: {columns}}}]"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_setting_without_columns_leaves_a_run_as_it_was():
    sources = load_config(None, ["data.preferences=[a.jsonl]"]).identity(["data"])["data"]["preferences"]
    assert sources == [{"path": "a.jsonl", "weight": 1.0, "split": None, "revision": None, "data_dir": None}]
    named = load_config(None, ["data.preferences=[{path: a.jsonl, columns: {prompt: p}}]"]).identity(["data"])
    assert named["data"]["preferences"][0]["columns"]["prompt"] == "p"


# Which answer is the better one.


PKU = ALL["PKU-SafeRLHF (or `safer_response_id`)"]


@pytest.mark.parametrize("cell", [1, 1.0, "1", "1.0", True, "True", "response_1", "Response_1"])
def test_spellings_of_the_best_answer(tmp_path, cell):
    file = jsonl(tmp_path / "a.jsonl", PKU.row | {"better_response_id": cell})
    assert pairs_of(file, PKU.columns) == ([PAIR], {})


@pytest.mark.parametrize("cell", [2, -1, "2", "response_2", "a"])
def test_a_best_that_is_no_option_is_refused_whatever_the_others_are(tmp_path, cell):
    """Counted from 1, 1 means the first answer: read as the second it would turn half of the pairs round."""
    rows = [PKU.row | {"better_response_id": 1}] * 50
    file = jsonl(tmp_path / "a.jsonl", *rows, PKU.row | {"better_response_id": cell})
    with pytest.raises(DataError, match=r"a\.jsonl:51: 'better_response_id' is .*neither of .*; add .*`values: \["):
        pairs_of(file, PKU.columns)
    other = {1: "1", 2: "2"}.get(cell, str(cell))
    items, skipped = pairs_of(file, PKU.columns | {"values": ["1", other]})  # the advice, followed
    assert len(items) == 51 and not skipped
    assert (items[0].chosen, items[50].chosen) == (PKU.row["response_0"], PKU.row["response_1"])


@pytest.mark.parametrize("cell", [None, "tie", "", float("nan")])
def test_no_best_answer_is_counted(tmp_path, cell):
    file = jsonl(tmp_path / "a.jsonl", PKU.row, PKU.row | {"better_response_id": cell})
    assert pairs_of(file, PKU.columns) == ([PAIR], {"no answer is the better one": 1})
    assert len(load_prompts([Source(path=str(file), columns=PKU.columns)]).items) == 2, "a tie is a prompt all the same"


def test_ties_and_gaps_of_ranks(tmp_path):
    columns = {"answers": "answers.answer", "rank": "answers.rank"}

    def row(*ranks):
        return {"prompt": "Why?", "answers": [{"answer": f"{n}", "rank": rank} for n, rank in enumerate(ranks)]}

    rows = row(2, 1, 1, 3, 3), row(None, 2, 5.5), row("2", "10", "1"), row(1, 1), row(None, 1), row()
    items, skipped = pairs_of(jsonl(tmp_path / "a.jsonl", *rows), columns)
    # The first of those that share a place; numbers as numbers: "10" is above "2".
    assert [(pair.chosen, pair.rejected) for pair in items] == [("1", "3"), ("1", "2"), ("2", "1")]
    assert skipped == {"no answer is the better one": 3}


# Nothing that changes a text is dropped without a word.


def test_what_is_not_read_is_noted(tmp_path):
    message = {"role": "assistant", "content": "Because.", "weight": 0, "name": "Ann"}
    rows = {"id": 7, "source": None, "Prompt": "Why?", "chosen": [message], "rejected": "No.", "context": "The sky."}
    loaded = load_pairs([Source(path=str(jsonl(tmp_path / "a.jsonl", rows)))])
    assert loaded.notes == (f"{tmp_path / 'a.jsonl'}: not used: columns context, id; keys of messages name, weight",)
    assert load_pairs([Source(path=str(jsonl(tmp_path / "b.jsonl", GOOD_ROW)))]).notes == ()


def test_nulls_that_a_table_fills_in_mean_nothing(tmp_path):
    message = {"role": "assistant", "content": "Because.", "from": None, "value": None, "tool_calls": None}
    row = GOOD_ROW | {
        "chosen": [message],
        "input": float("nan"),
        "system": None,
        "history": [],
        "images": [],
        "tools": "[]",
    }
    assert pairs_of(jsonl(tmp_path / "a.jsonl", row)) == ([PAIR], {})


def test_answers_that_share_a_beginning_keep_it(tmp_path):
    """TRL's extract_prompt cuts two texts at the first letter that differs: here it would ask 'Why? B'."""
    row = {"prompt": "Why?", "chosen": "Because it is.", "rejected": "Because I say so."}
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because it is."}]
    other = [turns[0], {"role": "assistant", "content": "Because I say so."}]
    items, _ = pairs_of(jsonl(tmp_path / "a.jsonl", row, {"chosen": turns, "rejected": other}))
    assert items == [Pair(WHY, "Because it is.", "Because I say so.")] * 2


def test_an_answer_about_messages_stays_a_text(tmp_path):
    messages = '[{"role": "user", "content": "Hi"}]'
    about = {"prompt": "Show me messages.", "chosen": messages, "rejected": "No."}
    role = {"prompt": "Show me JSON.", "chosen": '{"role": "admin", "from": 3}', "rejected": "[1]"}
    items, skipped = pairs_of(jsonl(tmp_path / "a.jsonl", about, role))
    assert [(pair.chosen, pair.rejected) for pair in items] == [(messages, "No."), (role["chosen"], "[1]")]
    assert not skipped


def test_an_answer_that_speaks_for_the_human_stays_an_answer(tmp_path):
    row = {"prompt": "Write a dialogue.", "chosen": "Human: Hi\n\nAssistant: Hello", "rejected": "No."}
    assert pairs_of(jsonl(tmp_path / "a.jsonl", row))[0] == [
        Pair((Turn("human", "Write a dialogue."),), "Human: Hi\n\nAssistant: Hello", "No.")
    ]


def test_a_word_of_the_prompt_is_not_taken_for_its_input_or_system_text(tmp_path):
    row = GOOD_ROW | {"prompt": "Sort 5 numbers.", "input": "5", "system": "Sort"}
    rendered = GOOD_ROW | {
        "prompt": "Be kind.\nAdd.\n### Input:\n1\n2\n\n### Response:",
        "input": "1\n2",
        "system": "Be kind.",
    }
    items, _ = pairs_of(jsonl(tmp_path / "a.jsonl", row, rendered))
    assert [pair.turns[0].text for pair in items] == ["Sort\n\nSort 5 numbers.\n\n5", rendered["prompt"]]


def test_an_input_that_is_one_of_the_prompts_options_is_asked_all_the_same(tmp_path):
    row = GOOD_ROW | {"prompt": "Classify:\npositive\nnegative\nor none", "input": "positive"}
    last = GOOD_ROW | {"prompt": "Classify:\npositive", "input": "positive"}
    items, _ = pairs_of(jsonl(tmp_path / "a.jsonl", row, last))
    assert [pair.turns[0].text for pair in items] == [f"{row['prompt']}\n\npositive", last["prompt"]]


def test_names_that_people_make_up_are_one_reason(tmp_path):
    rows = [GOOD_ROW | {"prompt": [{"role": name, "content": "Why?"}]} for name in ("Ann", "Bob")]
    assert pairs_of(jsonl(tmp_path / "a.jsonl", GOOD_ROW, *rows)) == ([PAIR], {"role 'other'": 2})


def test_array_of_objects_as_pandas_prints_it(tmp_path):
    """A Parquet column of lists is an array of objects in pandas, and to_csv prints it without commas."""
    printed = "[{{'content': 'Why?\\n}}\\n{{ it\\'s', 'role': 'user'}}\n {{'content': '{}', 'role': 'assistant'}}]"
    row = {"chosen": printed.format("Because."), "rejected": printed.format("No.")}
    file = table(tmp_path / "a.csv", row, str)
    assert pairs_of(file) == ([Pair((Turn("human", "Why?\n}\n{ it's"),), "Because.", "No.")], {})


# Cells stay the texts they were.


CELLS = (
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1e3",
    "True",
    "2024-01-02",
    "12:30",
    "-",
    "[1]",
    '"a"',
    "{}",
    "1,5",
    "=A1",
)


def test_cells_stay_the_text_they_were(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": cell, "chosen": cell, "rejected": f"not {cell}"} for cell in CELLS]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    expected = [Pair((Turn("human", cell),), cell, f"not {cell}") for cell in CELLS]
    for file in (jsonl(tmp_path / "a.jsonl", *rows), tmp_path / "a.json", tmp_path / "a.parquet", tmp_path / "a.csv"):
        assert pairs_of(file) == (expected, {}), file.name


# The same pair in all spellings is the same pair.

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(str.strip).filter(bool)


def spellings(turns, chosen, rejected):
    """One pair in the forms that fit any pair."""
    messages = [{"role": {"human": "user"}.get(role, role), "content": text} for role, text in turns]
    sharegpt = [{"from": {"assistant": "gpt"}.get(role, role), "value": text} for role, text in turns]
    sides = {"chosen": chosen, "rejected": rejected}
    parted = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
    transcript = "".join(f"\n\n{role.title()}: {text}" for role, text in turns) + "\n\nAssistant:"
    yield {"prompt": messages, **sides}
    yield {"Messages": messages, **sides}
    yield {"prompt": parted, **{side: {"role": "model", "content": text} for side, text in sides.items()}}
    yield {"prompt": json.dumps(messages), **sides}
    yield {"prompt": str(messages), **sides}
    yield {"conversations": sharegpt, **{side: {"from": "gpt", "value": text} for side, text in sides.items()}}
    yield {"prompt": transcript, **sides}
    yield {side: f"{transcript} {text}" for side, text in sides.items()}
    yield {side: [*messages, {"role": "bot", "content": text}] for side, text in sides.items()}
    yield {side: str([*messages, {"role": "Assistant", "content": text}]) for side, text in sides.items()}
    yield {
        "prompt": turns[-1].text,
        **{side: [*messages, {"role": "assistant", "content": text}] for side, text in sides.items()},
    }
    yield {
        "question": turns[-1].text,
        "history": [[turns[n].text, turns[n + 1].text] for n in range(0, len(turns) - 1, 2)],
        **sides,
    }


@settings(max_examples=15)
@given(before=st.lists(st.tuples(TEXT, TEXT), max_size=2), last=TEXT, chosen=TEXT, rejected=TEXT)
def test_one_pair_in_all_spellings(tmp_path_factory, before, last, chosen, rejected):
    turns = [Turn(role, text) for pair in before for role, text in zip(("human", "assistant"), pair, strict=True)]
    turns.append(Turn("human", last))
    rows = list(spellings(turns, chosen, rejected))
    if chosen == rejected:
        return
    file = jsonl(tmp_path_factory.mktemp("same") / "a.jsonl", *rows)
    assert pairs_of(file) == ([Pair(tuple(turns), chosen, rejected)] * len(rows), {})


# Whatever stands in a row, it is read or counted.

COLUMN = st.sampled_from(
    ["prompt", "Question", "messages", "input", "history", "system", "chosen", "rejected", "turns", "images", "x", "y"]
)
KEY = st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls"])
CELL = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    st.sampled_from(["user", "assistant", "gpt", "text", "Human:", "\n\nHuman: a\n\nAssistant: b", "[{'role': 'user'"]),
    st.sampled_from([EARLIER, [*EARLIER, *EARLIER], EARLIER[1], str(EARLIER), [["a", "b"]]]),
)
NESTED = st.recursive(
    CELL, lambda cell: st.lists(cell, max_size=3) | st.dictionaries(KEY, cell, max_size=4), max_leaves=6
)
SETTINGS = ({"prompt": ["x", "y"]}, {"answers": ["x", "y"], "best": "turns"}, {"answers": "x.text", "score": "y.value"})


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(COLUMN, NESTED, max_size=8), min_size=1, max_size=8), st.sampled_from((None, *SETTINGS))
)
def test_any_row_is_read_or_counted(tmp_path_factory, rows, columns):
    file = jsonl(tmp_path_factory.mktemp("any") / "a.jsonl", *rows)
    for load in (load_pairs, load_prompts):
        try:
            loaded = load([Source(path=str(file), columns=columns)])
        except DataError as error:
            assert "\n" not in str(error)
            continue
        assert len(loaded.items) + sum(loaded.skipped.values()) == len(rows)
        for item in loaded.items:
            assert item.turns[-1].role == "human" and item.turns[-1].text
            assert all(turn.role != other.role for turn, other in zip(item.turns, item.turns[1:], strict=False))
