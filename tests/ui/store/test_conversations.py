"""Saved sessions: whole or not at all, an owner's own alone, and readable Markdown that nothing breaks out of."""

import json
import os
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lite_c2f.errors import RunError
from lite_c2f.ui.store import conversations
from lite_c2f.ui.store.conversations import (
    ConversationEntry,
    Reply,
    Round,
    Transcript,
    Variant,
    as_json,
    as_markdown,
    from_json,
)

ME, OTHER = "a" * 32, "b" * 32
REPLY = Reply("fine", "It is 5.", 6, 85.25, "eos", "", 0.5, reward=-0.125, repeated=0.0, ratio=0.75, seed=3)
ROUND = Round("What is\n 2 plus 3?", {"temperature": 0.7}, {"fine": REPLY})
NONE = r"no such session; expected one of your own"


def session(number=0, owner=ME, rounds=(ROUND,), **changes):
    made = Transcript(f"{number:032x}", owner, f"2026-01-01T00:00:{number:02d}+00:00", "", rounds, {"name": "toy"})
    return made._replace(**changes)


def test_a_new_session_is_empty_and_has_an_id_of_its_own(tmp_path):
    made = conversations.new(ME, {"name": "toy"})
    assert made._replace(id="", created="") == Transcript("", ME, "", "", (), {"name": "toy"})
    assert re.fullmatch("[0-9a-f]{32}", made.id) and made.id != conversations.new(ME, {}).id
    conversations.save(tmp_path, made)
    assert conversations.load(tmp_path, ME, made.id) == made
    assert conversations.list_sessions(tmp_path, ME) == [ConversationEntry(made.id, "", made.created, 0)]


def test_what_is_saved_is_loaded_again(tmp_path):
    texts = ["", "a\u2028b\x00\r\n```\n", "🙂", "</script>"]
    replies = {name: REPLY._replace(pane=name, text=text) for name, text in zip("abcd", texts, strict=True)}
    failed = REPLY._replace(finish="error", message="out", first_token_s=None, ratio=None, reward=None)
    made = session(1, rounds=(ROUND, Round("", {}, {**replies, "e": failed})), system="Be kind.")
    conversations.save(tmp_path, made)
    assert conversations.load(tmp_path, ME, made.id) == from_json(as_json(made)) == made
    assert [path.name for path in (tmp_path / ME).iterdir()] == [f"{made.id}.json"]
    assert json.loads((tmp_path / ME / f"{made.id}.json").read_text())["schema"] == 2
    halved = session(1, system="a\ud800b")
    conversations.save(tmp_path, halved)  # replaces it; half a character cannot be in a file
    assert conversations.load(tmp_path, ME, made.id) == halved._replace(system="a?b")


def test_sessions_from_before_there_were_variants_open(tmp_path):
    """Written by hand as schema 1 had them: a round without the fields that came with schema 2."""
    reply = {"pane": "fine", "text": "It is 5.", "tokens": 6, "tokens_per_s": 85.25, "finish": "eos"}
    row = {
        "schema": 1, "id": f"{1:032x}", "owner": ME, "created": "2026-01-01T00:00:01+00:00", "system": "", "run": {},
        "rounds": [{"prompt": "2 plus 3?", "settings": {"seed": 3}, "replies": {"fine": reply}}],
    }  # fmt: skip
    (tmp_path / ME).mkdir()
    (tmp_path / ME / f"{1:032x}.json").write_text(json.dumps(row))
    opened = conversations.load(tmp_path, ME, f"{1:032x}")
    assert opened.rounds == (Round("2 plus 3?", {"seed": 3}, {"fine": Reply(**reply)}),)
    assert (opened.rounds[0].others, opened.rounds[0].place) == ((), 0)
    conversations.save(tmp_path, opened)
    assert conversations.load(tmp_path, ME, opened.id) == opened


def test_variants_are_saved_and_the_one_in_view_is_exported(tmp_path):
    other = Variant({"seed": 1}, {"fine": REPLY._replace(text="It is 6.")})
    round_ = ROUND._replace(others=(other,), place=1, pane_settings={"fine": {"temperature": 0.1}})
    made = session(1, rounds=(round_,))
    conversations.save(tmp_path, made)
    assert conversations.load(tmp_path, ME, made.id) == made
    written = as_markdown(made)
    assert "Answers 2 of 2." in written and "It is 5." in written and "It is 6." not in written
    assert '"temperature": 0.1' in written
    assert "Answers" not in as_markdown(session(1))


def test_a_list_is_newest_first_with_titles_on_one_line(tmp_path):
    long = ROUND._replace(prompt="word " * 40)
    for made in (session(1), session(3, rounds=(long, ROUND)), session(2, rounds=()), session(9, OTHER)):
        conversations.save(tmp_path, made)
    found = conversations.list_sessions(tmp_path, ME)
    assert [(entry.id[-1], entry.title, entry.rounds) for entry in found] == [
        ("3", "word " * 11 + "word…", 2),  # 55 + 4 characters, of at most 60 with the dots
        ("2", "", 0),
        ("1", "What is 2 plus 3?", 1),
    ]
    assert conversations.list_sessions(tmp_path, "c" * 32) == []


@pytest.mark.parametrize("name", ["", "A" * 32, "a" * 31, "a" * 33, "../" + "a" * 29, "a" * 32 + "\n", None, 7])
def test_what_is_no_id_is_no_session(tmp_path, name):
    conversations.save(tmp_path, session(1))
    for call in (
        lambda: conversations.load(tmp_path, ME, name),
        lambda: conversations.load(tmp_path, name, session(1).id),
        lambda: conversations.delete(tmp_path, ME, name),
        lambda: conversations.delete(tmp_path, name, session(1).id),
        lambda: conversations.list_sessions(tmp_path, name),
        lambda: conversations.new(name, {}),
        lambda: conversations.save(tmp_path, session(1, id=name)),
        lambda: conversations.save(tmp_path, session(1, owner=name)),
    ):
        with pytest.raises(RunError, match=NONE):
            call()
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_nothing_is_told_of_the_sessions_of_others(tmp_path):
    theirs = session(1, OTHER)
    conversations.save(tmp_path, theirs)
    messages = set()
    for call in (conversations.load, conversations.delete):
        for owner, id in ((ME, theirs.id), (ME, "f" * 32), (OTHER, "f" * 32)):
            with pytest.raises(RunError) as refused:
                call(tmp_path, owner, id)
            messages.add(str(refused.value))
    assert len(messages) == 1 and conversations.load(tmp_path, OTHER, theirs.id) == theirs
    (tmp_path / ME).mkdir()
    (tmp_path / OTHER / f"{theirs.id}.json").rename(tmp_path / ME / f"{theirs.id}.json")  # in the wrong folder
    with pytest.raises(RunError, match=NONE):
        conversations.load(tmp_path, ME, theirs.id)
    assert conversations.list_sessions(tmp_path, ME) == []


def test_no_symlink_is_followed(tmp_path):
    folder, outside = tmp_path / "sessions", tmp_path / "outside.json"
    made = session(1)
    outside.write_text(as_json(made))
    (folder / ME).mkdir(parents=True)
    link = folder / ME / f"{made.id}.json"
    link.symlink_to(outside)
    for call in (conversations.load, conversations.delete):
        with pytest.raises(RunError, match=NONE):
            call(folder, ME, made.id)
    assert conversations.list_sessions(folder, ME) == []
    conversations.save(folder, made._replace(system="new"))  # in the link's place
    assert not link.is_symlink() and outside.read_text() == as_json(made)
    conversations.save(tmp_path / "elsewhere", session(2, OTHER))
    (folder / OTHER).symlink_to(tmp_path / "elsewhere" / OTHER, target_is_directory=True)
    for call in (conversations.load, conversations.delete):
        with pytest.raises(RunError, match=NONE):
            call(folder, OTHER, session(2).id)
    with pytest.raises(RunError, match=NONE):
        conversations.save(folder, session(3, OTHER))
    assert conversations.list_sessions(folder, OTHER) == []
    os.mkfifo(folder / ME / f"{2:032x}.json")
    assert len(conversations.list_sessions(folder, ME)) == 1  # and does not wait for the pipe


def damaged():
    row = json.loads(as_json(session(1)))
    reply = row["rounds"][0]["replies"]["fine"]
    return {
        "cut": (as_json(session(1))[:-5], "is damaged"),
        "empty": ("", "is damaged"),
        "list": ("[]", "no schema"),
        "no schema": (json.dumps({**row, "schema": None}), "no schema"),
        "true": (json.dumps({**row, "schema": True}), "no schema"),
        "later": (json.dumps({**row, "schema": 3, "rounds": 7}), r"has schema 3; expected schema 2; use a newer"),
        "schema 0": (json.dumps({**row, "schema": 0}), "no schema"),
        "no such variant": (json.dumps(row).replace('"place": 0', '"place": 1'), r"rounds\[0\].place is not among"),
        "variant": (json.dumps(row).replace('"others": []', '"others": [{}]'), r"others\[0\] has no 'settings'"),
        "field gone": (json.dumps({name: row[name] for name in row if name != "system"}), "has no 'system'"),
        "unknown field": (json.dumps({**row, "admin": True}), "'admin', which is unknown"),
        "wrong type": (json.dumps({**row, "rounds": [{**row["rounds"][0], "prompt": 7}]}), r"rounds\[0\].prompt"),
        "infinite": (as_json(session(1)).replace("85.25", "1e999"), "not a finite number"),
        "nan": (as_json(session(1)).replace("85.25", "NaN"), "not a finite number"),
        "deep": ("[" * 100_000, "nested too deeply"),
        "id": (json.dumps({**row, "id": "../x"}), "32 hex digits"),
        "time": (json.dumps({**row, "created": "today"}), "not a time"),
        "no such day": (json.dumps({**row, "created": "2026-02-30T00:00:00+00:00"}), "is damaged"),
        "tokens": (json.dumps(row).replace('"tokens": 6', f'"tokens": {"9" * 5000}'), "is damaged"),
        "reply": (json.dumps(row).replace(json.dumps(reply), "null"), "replies.fine is not an object"),
    }


@pytest.mark.parametrize("case", damaged())
def test_what_is_damaged_or_too_new_is_refused_by_name_and_left_out_of_the_list(case, tmp_path):
    text, message = damaged()[case]
    with pytest.raises(RunError, match=message) as refused:
        from_json(text)
    assert "\n" not in str(refused.value)
    conversations.save(tmp_path, session(1))
    conversations.save(tmp_path, session(2))
    (tmp_path / ME / f"{1:032x}.json").write_text(text)
    assert [entry.id[-1] for entry in conversations.list_sessions(tmp_path, ME)] == ["2"]
    if case != "id":  # that one is another's
        with pytest.raises(RunError, match=f"session {1:032x}.*{message}"):
            conversations.load(tmp_path, ME, f"{1:032x}")
    conversations.delete(tmp_path, ME, f"{1:032x}")
    assert [path.stem[-1] for path in (tmp_path / ME).iterdir()] == ["2"]


def test_bytes_that_are_no_text(tmp_path):
    conversations.save(tmp_path, session(1))
    (tmp_path / ME / f"{1:032x}.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="not UTF-8"):
        conversations.load(tmp_path, ME, f"{1:032x}")


def test_the_oldest_go_when_an_owner_has_many(tmp_path):
    conversations.save(tmp_path, session(9, OTHER), max_sessions=1)
    for number in (4, 1, 3, 2):
        conversations.save(tmp_path, session(number), max_sessions=3)
    assert [entry.id[-1] for entry in conversations.list_sessions(tmp_path, ME)] == ["4", "3", "2"]
    conversations.save(tmp_path, session(0), max_sessions=3)  # the one that is saved stays, however old
    assert [entry.id[-1] for entry in conversations.list_sessions(tmp_path, ME)] == ["4", "3", "0"]
    conversations.save(tmp_path, session(3, system="x"), max_sessions=3)  # nothing is added, nothing goes
    assert (
        len(conversations.list_sessions(tmp_path, ME)) == 3 and len(conversations.list_sessions(tmp_path, OTHER)) == 1
    )


def test_not_at_all_when_it_cannot_be_json(tmp_path):
    conversations.save(tmp_path, session(1))
    with pytest.raises(ValueError):
        conversations.save(tmp_path, session(1, run={"x": float("nan")}))
    assert conversations.load(tmp_path, ME, session(1).id) == session(1)
    assert len(list((tmp_path / ME).iterdir())) == 1


def test_many_at_once_are_whole(tmp_path):
    rounds = (ROUND._replace(prompt="x" * 200_000),)
    failures = []

    def work(mark):
        try:
            for _ in range(5):
                conversations.save(tmp_path, session(1, rounds=rounds, system=mark * 50_000))
                found = conversations.load(tmp_path, ME, session(1).id)
                assert len(set(found.system)) == 1 and len(found.system) == 50_000
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in "abcdef"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == [] and len(list((tmp_path / ME).iterdir())) == 1


def test_markdown_by_hand():
    found = as_markdown(session(1, run={}), {"fine": "Fine Actor"})
    assert found == (
        "# Session\n\nBegun 2026-01-01T00:00:01+00:00, 1 round(s).\n\n## Round 1\n\n```text\nWhat is\n 2 plus 3?\n```\n"
        '\nSettings:\n\n```json\n{\n  "temperature": 0.7\n}\n```\n\n### Fine Actor\n\n6 tokens, 85 tokens/s, first '
        "after 0.50 s, eos, seed 3, ratio 0.75, reward -0.12, 0% repeated 4-grams\n\n```text\nIt is 5.\n```\n"
    )


NASTY = ["", "```", "a\n```\n# out\n<script>x</script>", "~~~\n`````", "````\r```", "[x](http://e.org) ![i](j)",
         "<img src=x onerror=alert(1)>", "http://e.org", "    four", "\t`", "- [ ] a\n1. b\n> c",
         "a\u2028```\u2028b"]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(*[st.sampled_from(NASTY) | st.text(alphabet="`~\n\r #<>[]()!*_-=|\\&;:a1.", max_size=30) for _ in range(4)])
def test_nothing_breaks_out_of_the_markdown(prompt, text, message, pane):
    """Read by another Markdown parser: code blocks as given, and no markup but the headings."""
    reply = REPLY._replace(text=text, finish="error", message=message)
    made = session(1, rounds=(Round(prompt, {}, {pane: reply}),), system=f"s{text}", run={"name": prompt})
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(as_markdown(made))
    kinds = [token.type for token in tokens if token.type not in ("paragraph_open", "paragraph_close", "inline")]
    heading = ["heading_open", "heading_close"]
    assert kinds == [*heading, "fence", "fence", *heading, "fence", *heading, "fence"]

    def lines(text):  # as CommonMark has them
        return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")

    said = [token.content for token in tokens if token.type == "fence"]
    assert said[1:] == [lines(f"{part}\n") for part in (f"s{text}", prompt, text)]
    inline = [token for token in tokens if token.type == "inline"]
    assert {child.type for token in inline for child in token.children} <= {"text", "text_special"}
    assert " ".join(message.split()) in inline[-1].content.replace("\\", "") or "\\" in message
