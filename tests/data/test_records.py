import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from lite_c2f.config import settings
from lite_c2f.data import records
from lite_c2f.data.records import Pair, Prompt, Turn, load_prompts, parse_transcript, prompts_of
from lite_c2f.data.sources import name_of, read_rows
from lite_c2f.data.turns import texts_within
from lite_c2f.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
PLAIN = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
PLAIN_PAIR = Pair((Turn("human", "Why?"),), "Because.", "No.")


class Source(NamedTuple):
    path: str
    weight: float = 1.0
    split: str | None = None
    revision: str | None = None


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(str(path))


class Read(NamedTuple):
    items: list[Pair]
    skipped: dict[str, int]


def load_pairs(sources):
    """What is read, without the sources' names and the places of rows."""
    loaded = records.load_pairs(sources)
    return Read([pair._replace(source="") for pair in loaded.items], loaded.skipped)


def pairs_of(tmp_path, *rows):
    return load_pairs([write_jsonl(tmp_path / "rows.jsonl", *rows)])


def numbered(tmp_path, count):
    return write_jsonl(
        tmp_path / "n.jsonl", *({"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(count))
    )


# Transcripts.


def test_transcript_splits_at_its_markers_only():
    text = "\n\nHuman: Hi: Human: you\n\nAssistant: One.\n\nTwo.\n\nHuman: Bye\n\nAssistant:"
    assert parse_transcript(text) == (
        Turn("human", "Hi: Human: you"),
        Turn("assistant", "One.\n\nTwo."),
        Turn("human", "Bye"),
        Turn("assistant", ""),
    )


def test_transcript_joins_turns_of_one_speaker_and_takes_a_preamble_and_windows_line_ends():
    text = "Be kind.\r\n\r\nHuman: Hi\n\nAssistant: A\n\nAssistant: B"
    assert parse_transcript(text) == (Turn("human", "Be kind.\n\nHi"), Turn("assistant", "A\n\nB"))


@pytest.mark.parametrize("text", ["", "\n\n", "hello", "a Human: b", "\nHuman: b"])
def test_text_without_a_marker_is_no_transcript(text):
    assert parse_transcript(text) == ()


# Pair formats.


def test_transcript_pair(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    loaded = pairs_of(tmp_path, {"chosen": start + " Good. ", "rejected": start + " Bad."})
    turns = (Turn("human", "Hi"), Turn("assistant", "Hello"), Turn("human", "Why?"))
    assert loaded == ([Pair(turns, "Good.", "Bad.")], {})


def test_plain_pair_keeps_markers_within_answers_and_reads_ended(tmp_path):
    row = PLAIN | {"rejected": "No.\n\nHuman: And?", "rejected_ended": False}
    assert pairs_of(tmp_path, row).items == [
        Pair((Turn("human", "Why?"),), "Because.", "No.\n\nHuman: And?", True, False)
    ]


def test_transcript_as_prompt_is_not_nested(tmp_path):
    row = PLAIN | {"prompt": "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Why?\n\nAssistant:"}
    turns = (Turn("human", "Hi"), Turn("assistant", "Yes"), Turn("human", "Why?"))
    assert pairs_of(tmp_path, row).items == [Pair(turns, "Because.", "No.")]


def test_conversational_pairs(tmp_path):
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}
    good, bad = {"role": "assistant", "content": "Because."}, {"role": "assistant", "content": "No."}
    expected = Pair((Turn("human", "Be kind.\n\nWhy?"),), "Because.", "No.")
    explicit = {"prompt": [system, user], "chosen": [good], "rejected": [bad]}
    implicit = {"chosen": [system, user, good], "rejected": [system, user, bad]}
    assert pairs_of(tmp_path, explicit, implicit).items == [expected, expected]
    text_prompt = {"prompt": "Why?", "chosen": [user, good], "rejected": [user, bad]}
    assert pairs_of(tmp_path, text_prompt).items == [PLAIN_PAIR]
    # Where the answers are whole conversations, theirs is the prompt; the column may hold its first message only.
    longer = {"prompt": "Why?", "chosen": [user, bad, user, good], "rejected": [user, bad, user, bad]}
    turns = (Turn("human", "Why?"), Turn("assistant", "No."), Turn("human", "Why?"))
    assert pairs_of(tmp_path, longer).items == [Pair(turns, "Because.", "No.")]


def test_unicode_stays_as_it_is(tmp_path):
    decomposed = "cafe\u0301 \u2028 \U0001f600"
    assert pairs_of(tmp_path, PLAIN | {"chosen": decomposed}).items[0].chosen == decomposed


HH = "\n\nHuman: Hi\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PLAIN | {"rejected": " Because. "}, "sides equal"),
        (PLAIN | {"rejected": " \n"}, "empty answer"),
        (PLAIN | {"rejected": None}, "empty answer"),
        ({"chosen": HH, "rejected": HH + "a"}, "empty answer"),
        (PLAIN | {"prompt": " "}, "empty prompt"),
        (PLAIN | {"prompt": None}, "empty prompt"),
        (PLAIN | {"prompt": [{"role": "system", "content": "Be kind."}]}, "empty prompt"),
        ({"chosen": HH + "a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}, "prompts differ"),
        ({"chosen": HH + "a", "rejected": HH + "a\n\nHuman: b\n\nAssistant: c"}, "prompts differ"),
        ({"chosen": "a", "rejected": HH + "b"}, "a text without turns, and no prompt"),
        ({"chosen": HH + "a\n\nHuman: b", "rejected": HH + "b"}, "no assistant turn"),
        (PLAIN | {"prompt": HH + "a"}, "prompt ends with an answer"),
        (PLAIN | {"prompt": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
        (PLAIN | {"chosen": "\ud83d"}, "broken Unicode"),
    ],
)
def test_row_of_no_use_is_counted(tmp_path, row, reason):
    assert pairs_of(tmp_path, row, PLAIN, row) == ([PLAIN_PAIR], {reason: 2})


def test_equal_texts_of_which_one_was_cut_off_are_a_preference(tmp_path):
    assert len(pairs_of(tmp_path, PLAIN | {"rejected": "Because.", "rejected_ended": False}).items) == 1


# Prompts.


def test_prompt_formats(tmp_path):
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    rows = [
        {"prompt": "Why?", "answer": 7, "gap": None},
        {"question": "Why?", "answer": "7"},
        {"turns": ["Why?", "How?"], "category": "maths"},
        {"messages": messages},
        PLAIN,
        {"chosen": "\n\nHuman: Why?\n\nAssistant: a", "rejected": "\n\nHuman: Why?\n\nAssistant: b"},
        {"prompt": ""},
        {"turns": []},
    ]
    loaded = load_prompts([write_jsonl(tmp_path / "p.jsonl", *rows)])
    assert [prompt.turns for prompt in loaded.items] == [(Turn("human", "Why?"),)] * 6
    extras = [prompt.extra for prompt in loaded.items]
    assert extras == [{"answer": 7}, {"answer": "7"}, {"category": "maths"}, {}, {}, {}]
    assert loaded.skipped == {"empty prompt": 2}


def test_prompts_of_pairs_are_unique_and_in_order():
    one, two = (Turn("human", "1"),), (Turn("human", "2"),)
    pairs = [Pair(two, "a", "b"), Pair(one, "a", "b"), Pair(two, "c", "d")]
    assert prompts_of(pairs) == [Prompt(two, {}), Prompt(one, {})]


# Files, folders, globs, weights, the hub.


def test_every_format_reads_the_same_rows(tmp_path):
    rows = [PLAIN, PLAIN | {"prompt": 'Say "a,\nb"', "chosen": "None", "rejected": "42"}]
    expected = load_pairs([write_jsonl(tmp_path / "a.jsonl", *rows)]).items
    assert [pair.rejected for pair in expected] == ["No.", "42"]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), tmp_path / "d.parquet")
    for plain in list(tmp_path.iterdir()):
        packed = plain.with_name(plain.name + ".gz")
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        assert load_pairs([Source(str(plain))]).items == expected, plain
        assert load_pairs([Source(str(packed))]).items == expected, packed


def test_folder_and_glob_read_our_files_in_order(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, {"prompt": name})
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "empty.json").mkdir()
    monkeypatch.chdir(tmp_path.parent)
    for path in (tmp_path, tmp_path / "*", tmp_path / "[ab].jsonl", f"{tmp_path.name}/*.jsonl"):
        assert [prompt.turns[0].text for prompt in load_prompts([Source(str(path))]).items] == ["a.jsonl", "b.jsonl"]


def test_byte_order_mark_blank_lines_and_long_csv_cells(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(PLAIN).encode() + b"\r\n\r\n")
    (tmp_path / "b.csv").write_text(f"\ufeffprompt,chosen,rejected\n{'x' * 200_000},a,b\n", encoding="utf-8")
    assert load_pairs([Source(str(tmp_path / "a.jsonl"))]).items == [PLAIN_PAIR]
    before = csv.field_size_limit(1000)
    try:
        assert len(load_pairs([Source(str(tmp_path / "b.csv"))]).items[0].turns[0].text) == 200_000
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(("weight", "count"), [(1, 10), (0.5, 5), (0.2, 2), (0.01, 1), (2, 20), (1.2, 12)])
def test_weight_keeps_a_share_or_repeats(tmp_path, weight, count):
    texts = [pair.turns[0].text for pair in load_pairs([numbered(tmp_path, 10)._replace(weight=weight)]).items]
    whole, rest = divmod(count, 10)
    assert texts[: 10 * whole] == list("0123456789") * whole and len(texts) == count
    assert texts[10 * whole :] == sorted(set(texts[10 * whole :])), "each once, in the file's order"
    assert len(set(texts)) == (10 if whole else rest)


def test_what_a_weight_keeps_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(200)]
    one = write_jsonl(tmp_path / "one.jsonl", *rows)._replace(weight=0.3)
    other = write_jsonl(tmp_path / "other.jsonl", *reversed(rows))._replace(weight=0.3)
    chosen = [{pair.turns[0].text for pair in load_pairs([source]).items} for source in (one, other)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 60
    # Of a file sorted by topic, some of each: 100 rows of either kind, 30 of each expected, 20 at least.
    assert 20 <= sum(int(text.split()[1]) < 100 for text in chosen[0]) <= 40


def test_sources_are_joined(tmp_path):
    a, b = write_jsonl(tmp_path / "a.jsonl", PLAIN), write_jsonl(tmp_path / "b.jsonl", PLAIN, PLAIN | {"chosen": ""})
    assert load_pairs([a, b]) == ([PLAIN_PAIR] * 2, {"empty answer": 1})


def test_hub_name(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **where: calls.append((path, where)) or [PLAIN])
    assert load_pairs([Source("own-er/na.me", split="test", revision="abc"), Source("a/b")]).items == [PLAIN_PAIR] * 2
    assert calls == [
        ("own-er/na.me", {"split": "test", "revision": "abc"}),
        ("a/b", {"split": "train", "revision": None}),
    ]


def test_hub_error_is_one_line(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)

    def fail(*_, **__):
        raise ConnectionError("cannot reach it\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'a/b'.*cannot reach it\).*split 'train'") as caught:
        load_pairs([Source("a/b")])
    assert "\n" not in str(caught.value)


def test_importing_records_needs_neither_torch_nor_datasets():
    code = "import sys, lite_c2f.data.records; sys.exit(bool({'torch', 'datasets', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Bad input: the message names the file, the row and the column.

ROW = json.dumps(PLAIN)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", ["a.jsonl", "no rows"]),
        ("a.jsonl", "\n \n", ["a.jsonl", "no rows"]),
        ("a.json", "[]", ["a.json", "no rows"]),
        ("a.csv", "prompt,chosen,rejected\n", ["a.csv", "no rows"]),
        ("a.jsonl", ROW + "\n\n{broken\n", ["a.jsonl:3", "not JSON", "column 2"]),
        ("a.jsonl", "[1]\n", ["a.jsonl:1", "list [1]", "an object"]),
        ("a.jsonl", f"[{ROW}]\n", ["a.jsonl:1", "rename the file to .json"]),
        ("a.jsonl", "1" * 5000, ["a.jsonl:1", "JSON"]),
        ("a.jsonl", "[" * 200_000, ["a.jsonl:1", "JSON"]),
        ("a.jsonl", ROW.encode() + b'\n{"prompt": "\xff"}', ["a.jsonl:2", "UTF-8"]),
        ("a.json", ROW + "\n" + ROW, ["a.json:2", "not JSON", ".jsonl"]),
        ("a.json", ROW, ["a.json", "dict", "list of rows"]),
        ("a.json", "[5]", ["a.json: row 1", "int 5"]),
        (
            "a.jsonl",
            '{"prompt": "a", "better": "b", "id": 3}',
            ["0 of 1 rows", "no 'chosen': 1, first at", "a.jsonl:1", "prompt (text), better (text), id (a number)"],
        ),
        ("a.jsonl", '{"prompt": "a", "chosen": "b"}', ["a.jsonl:1", "no 'rejected'", "two answers to each prompt"]),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', ["no 'chosen'", "messages (messages)"]),
        ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": 5}', ["'rejected' is a number: 1, first at"]),
        ("a.csv", "prompt,chosen,rejected\na,b,c\na,b\n", ["a.csv: row 2", "too few"]),
        ("a.csv", "prompt,chosen,rejected\na,b,c,d\n", ["a.csv: row 1", "too many"]),
        ("a.csv", 'prompt,chosen,rejected\na,b,c\na,"b\n', ["a.csv: row 2", "not CSV"]),
        ("a.csv", "prompt,chosen\na,b\n", ["a.csv: row 1", "no 'rejected'", "prompt (text), chosen (text)"]),
        ("a.parquet", "PAR0", ["a.parquet", "not Parquet"]),
        ("a.jsonl.gz", "not gzip", ["a.jsonl.gz", "cannot be read"]),
        ("a.jsonl.gz", gzip.compress(ROW.encode() * 99)[:-12], ["a.jsonl.gz", "cannot be read"]),
        ("a.txt", ROW, ["a.txt", "suffix '.txt'", ".parquet"]),
    ],
)
def test_bad_file(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        load_pairs([Source(str(path))])
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in [*words, "; expected "] if word not in message] == [], message


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.jsonl", "no such file or folder 'nowhere.jsonl'"),
        ("no/where.csv.gz", "no such file or folder 'no/where.csv.gz'"),
        ("toy", "no such file or folder 'toy'"),
        ("none/*.jsonl", "no data file in pattern 'none/*.jsonl'"),
        ("a**b", "'a**b'"),
        (".", "no data file in folder '.'"),
    ],
)
def test_missing_path(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_pairs([Source(path)])
    assert words in str(caught.value)


@pytest.mark.parametrize("turns", ["Why?", [1], [["a"]]])
def test_turns_of_a_wrong_type_are_counted(tmp_path, turns):
    loaded = load_prompts([write_jsonl(tmp_path / "p.jsonl", {"turns": turns}, {"turns": ["Why?"]})])
    assert len(loaded.items) == 1
    assert list(loaded.skipped) == [
        f"'turns' is {'text' if turns == 'Why?' else 'a list of ' + ('numbers' if turns == [1] else 'lists')}"
    ]


def test_nothing_usable_lists_counts_and_first_rows(tmp_path):
    equal = PLAIN | {"rejected": "Because."}
    with pytest.raises(DataError) as caught:
        pairs_of(tmp_path, equal, equal, PLAIN | {"prompt": ""})
    assert "sides equal: 2, first at" in str(caught.value) and "rows.jsonl:1" in str(caught.value)
    assert "empty prompt: 1, first at" in str(caught.value) and "rows.jsonl:3" in str(caught.value)


def test_no_sources():
    with pytest.raises(DataError, match="no sources"):
        load_pairs([])


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_bad_weight(tmp_path, weight):
    with pytest.raises(DataError, match=r"n\.jsonl: weight"):
        load_pairs([numbered(tmp_path, 2)._replace(weight=weight)])


# Real data.


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the real data file {name} is not on this machine")
    return Source(str(path))


def test_real_preference_pairs_are_read_or_counted():
    loaded = load_pairs([real("hh-rlhf/harmless-base-1500.jsonl.gz")])
    # Counted apart from the code under test: four chosen texts end right after their last `Assistant:`.
    assert loaded.skipped == {"empty answer": 4}
    assert len(loaded.items) == 1496
    assert all(pair.turns[-1].role == "human" for pair in loaded.items)
    assert all(pair.turns[0].role == "human" for pair in loaded.items)
    assert sum(len(pair.turns) > 1 for pair in loaded.items) > 1000
    assert not any("\n\nHuman:" in text for pair in loaded.items for text in (pair.chosen, pair.rejected))


def test_real_questions():
    assert len(load_prompts([real("mt-bench/question.jsonl")]).items) == 80
    grade_school = load_prompts([real("gsm8k/test-300.jsonl")]).items
    assert len(grade_school) == 300
    assert all("####" in prompt.extra["answer"] for prompt in grade_school)


def test_a_row_without_a_column_is_counted_where_others_have_it(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(ROW + '\n{"prompt": "a", "better": "b"}\n' + ROW)
    loaded = load_pairs([Source(str(file))])
    assert len(loaded.items) == 2 and loaded.skipped == {"no 'chosen'": 1}


def test_hub_keys_on_a_local_file_are_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(ROW)
    with pytest.raises(DataError, match=r"local path with split='test'.*remove split"):
        load_pairs([Source(str(file), split="test")])


# The names of sources.


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (settings.Source(path="data/*.jsonl"), "data/*.jsonl"),
        (settings.Source(path="Anthropic/hh-rlhf", data_dir="helpful-base"), "Anthropic/hh-rlhf/helpful-base"),
        (settings.Source(path="own/er", split="train", revision="abc"), "own/er"),
        (settings.Source(path="own/er", data_dir="a", split="test"), "own/er/a (test)"),
    ],
)
def test_the_name_of_a_source(source, name):
    assert name_of(source) == name


def test_items_carry_the_name_of_their_source(tmp_path):
    a, b = write_jsonl(tmp_path / "a.jsonl", PLAIN), write_jsonl(tmp_path / "b.jsonl", PLAIN, PLAIN)
    assert [pair.source for pair in records.load_pairs([a, b]).items] == [a.path, b.path, b.path]
    assert [prompt.source for prompt in load_prompts([b, a]).items] == [b.path, b.path, a.path]


def test_a_prompt_of_two_sources_is_counted_for_one_of_them_whatever_their_order():
    own = [Pair((Turn("human", f"{n} of a"),), "x", "y", source="a") for n in range(40)]
    shared = [(Turn("human", f"{n}"),) for n in range(400)]
    pairs = own + [Pair(turns, "x", "y", source=source) for source in ("a", "b") for turns in shared]
    found = {prompt.turns: prompt.source for prompt in prompts_of(pairs)}
    assert found == {prompt.turns: prompt.source for prompt in prompts_of(pairs[::-1])}
    assert len(prompts_of(pairs)) == 440 and all(found[pair.turns] == "a" for pair in own)
    assert 150 < sum(found[turns] == "a" for turns in shared) < 250  # about half: 5 standard deviations are 50


# Parquet with columns of the type arrow.json.

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
CHAT = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
JSON_ROWS = {
    "texts and messages in one column": [CHAT, {"prompt": "q", "chosen": "a", "rejected": "b"}],
    "transcripts beside plain rows": [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        CHAT,
    ],
    "messages with other keys": [
        {"chosen": [USER, GOOD | {"name": "x"}], "rejected": [USER, BAD | {"calls": {"k": 1}}]}
    ],
    "texts that look like JSON": [{"prompt": "q", "chosen": "4.20", "rejected": "null", "rejected_ended": True}, CHAT],
}


@pytest.mark.parametrize("kind", JSON_ROWS)
def test_parquet_that_datasets_made_of_jsonl_reads_as_the_jsonl(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    source = write_jsonl(tmp_path / "a.jsonl", *JSON_ROWS[kind])
    made = datasets.Dataset.from_json(source.path, cache_dir=str(tmp_path / "cache"))
    made.to_parquet(str(tmp_path / "a.parquet"))
    assert load_pairs([Source(str(tmp_path / "a.parquet"))]) == load_pairs([source])
    assert all(pair.chosen in ("a", "4.20") and pair.turns[0].text == "q" for pair in load_pairs([source]).items)


def test_json_is_decoded_wherever_it_stands_in_a_column(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = pyarrow.json_()

    def column(values, arrow, storage):
        return pyarrow.array(values, storage).cast(arrow)

    text = pyarrow.string()
    table = pyarrow.table(
        {
            "plain": column(['"q"', None, "[1, {}]"], made, text),
            "list": column([["1", None], [], None], pyarrow.list_(made), pyarrow.list_(text)),
            "struct": pyarrow.StructArray.from_arrays(
                [column(['{"b": "c"}', "null", "2"], made, text), pyarrow.array(['"t"', "t", None])], ["a", "text"]
            ),
            "text": pyarrow.array(['"q"', "[1]", "1"]),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = [row for _, row in read_rows(Source(str(tmp_path / "a.parquet")))]
    assert rows == [
        {"plain": "q", "list": ["1", None], "struct": {"a": {"b": "c"}, "text": '"t"'}, "text": '"q"'},
        {"plain": None, "list": [], "struct": {"a": "null", "text": "t"}, "text": "[1]"},
        {"plain": [1, {}], "list": None, "struct": {"a": "2", "text": None}, "text": "1"},
    ]


def test_a_json_column_with_other_text_names_the_row(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(['"q"', "{q"]).cast(pyarrow.json_())
    parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 2, 'prompt': not JSON .*column 2"):
        load_prompts([Source(str(tmp_path / "a.parquet"))])


@pytest.mark.parametrize("kind", JSON_ROWS)
def test_hub_rows_with_json_columns_read_as_the_jsonl(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    source = write_jsonl(tmp_path / "a.jsonl", *JSON_ROWS[kind])
    made = datasets.Dataset.from_json(source.path, cache_dir=str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **where: made)
    assert load_pairs([Source("a/b")]) == load_pairs([source])


def test_the_same_texts_of_other_speakers_are_other_turns():
    """`within` by hand: a part of a text of the same speaker, whatever the order."""
    turns = [Turn("human", "Why is that?"), Turn("assistant", "Because.")]
    swapped = [Turn("assistant", "Why is that?"), Turn("human", "Because.")]
    assert (
        texts_within(turns, turns)
        and texts_within(turns[::-1], turns)
        and texts_within([], turns)
        and texts_within([], [])
    )
    assert texts_within([Turn("human", "is that"), Turn("assistant", "cause")], turns)
    assert (
        not texts_within(swapped, turns) and not texts_within(turns, swapped) and not texts_within(swapped[:1], turns)
    )
    assert not texts_within([Turn("assistant", "is that")], turns) and not texts_within(
        [Turn("human", "Why is that?!")], turns
    )
    assert not texts_within(turns, [])


def test_a_conversation_of_thousands_of_turns_is_read(tmp_path):
    """In the prompt and again in both sides: each is looked up, not compared with all others."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"Turn number {n} of many."} for n in range(2_999)]
    sides = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    assert len(pairs_of(tmp_path, {"prompt": turns} | sides)[0][0].turns) == 2_999
