"""What a run reads: the order of its data, what it holds out, and the share of each source in every part."""

import json
import random
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from lite_c2f.coarse.state import PromptQueue
from lite_c2f.config.loading import load_config
from lite_c2f.data.order import count_by_source, interleaved, short_names, shuffled
from lite_c2f.data.records import Pair, Prompt, Turn
from lite_c2f.errors import DataError
from lite_c2f.runs.corpus import (
    Corpus,
    compared_prompts,
    load_corpus,
    ratio_prompts,
    sampled_prompts,
    split,
    training_pairs,
)
from lite_c2f.runs.messages import report_data, report_split
from lite_c2f.runtime.progress import SilentSink
from lite_c2f.storage.files import write_json

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("configs/mistral-7b*.yaml"))
HH_ROWS = {"helpful": 43_835, "harmless": 42_537}  # training rows of helpful-base and harmless-base


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def pair_rows(name, count):
    return [{"prompt": f"{name} {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]


def prompt_rows(name, count):
    return [{"prompt": f"{name} {n}?"} for n in range(count)]


def corpus_of(preferences, *overrides, prompts=()):
    data = {"preferences": list(preferences), **({"prompts": list(prompts)} if prompts else {})}
    config = load_config({"data": data}, overrides)
    return load_corpus(config), config


def texts(items):
    return [item.turns[-1].text for item in items]


def counts(items):
    """{source's file name: items}."""
    return {Path(source).stem: count for source, count in Counter(item.source for item in items).items()}


def assert_fair(items):
    """Every prefix and every suffix holds each source in its share, up to less than a row."""
    sizes = Counter(item.source for item in items)
    for rows in (items, items[::-1]):
        seen = dict.fromkeys(sizes, 0)
        for length, item in enumerate(rows, 1):
            seen[item.source] += 1
            assert all(abs(seen[name] * len(items) - length * sizes[name]) < len(items) for name in sizes), length


# The order.


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ([], []),
        ([3], [0, 0, 0]),
        ([2, 2], [0, 1, 0, 1]),
        # Of 3 and 1 the rare one is due at 4 * 1/2 = 2 at the earliest: [0, 1, ...] would be three quarters too early
        # after one row, and at half a row off after two either is right.
        ([3, 1], [0, 0, 1, 0]),
        ([1, 1, 1], [0, 1, 2]),
        ([0, 2], [1, 1]),
    ],
)
def test_sources_take_turns(sizes, order):
    assert list(interleaved(sizes)) == order


def test_every_prefix_holds_every_source_in_its_share():
    rng = random.Random(0)
    for sources in range(2, 9):
        for _ in range(30):
            sizes = [rng.randint(1, rng.choice((2, 10, 100))) for _ in range(sources)]
            total, taken = sum(sizes), [0] * sources
            for length, source in enumerate(interleaved(sizes), 1):
                taken[source] += 1
                # |taken - length * size / total| <= 1 - 1 / (2 * sources - 2), in whole numbers
                most = max(abs(count * total - length * size) for count, size in zip(taken, sizes, strict=True))
                assert most * (2 * sources - 2) <= total * (2 * sources - 3)
            assert taken == sizes


def test_a_shuffle_knows_texts_and_seed_alone():
    rows = [Prompt((Turn("human", f"{n}"),), {}, "a" if n < 60 else "b") for n in range(100)]
    order = texts(shuffled(rows, 0))
    mixed = list(rows)
    random.Random(1).shuffle(mixed)
    assert texts(shuffled(mixed, 0)) == order
    moved = [row._replace(source=f"/elsewhere/{row.source}") for row in mixed]  # the same files in another folder
    assert texts(shuffled(moved, 0)) == order
    other = texts(shuffled(rows, 1))
    assert other != order and sorted(other) == sorted(order)
    for source in ("a", "b"):  # a shuffle, not the files' order, nor another seed's
        one, two = ([int(row.turns[0].text) for row in shuffled(rows, seed) if row.source == source] for seed in (0, 1))
        assert one != sorted(one) and two != sorted(two) and one != two


def test_copies_come_back_after_every_other_row():
    rows = [Pair((Turn("human", f"{n}"),), "good", "bad", source="a") for n in range(20)]
    order = texts(shuffled(rows * 2 + rows[:5], 0))
    assert len(set(order[:20])) == 20 and len(set(order[20:40])) == 20
    assert sorted(order[40:], key=int) == ["0", "1", "2", "3", "4"]


def test_short_names_tell_sources_apart():
    assert short_names(["/x/a.jsonl", "toy"]) == {"/x/a.jsonl": "a.jsonl", "toy": "toy"}
    assert short_names(["/x/a.jsonl", "/y/a.jsonl"]) == {"/x/a.jsonl": "x/a.jsonl", "/y/a.jsonl": "y/a.jsonl"}
    assert short_names([]) == {}


# All sources in every part.


def test_two_files_of_fifty_rows_give_twenty_pairs_each(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", pair_rows(name, 50)) for name in ("helpful", "harmless")]
    corpus, config = corpus_of(files, "reward.max_pairs=40")
    assert counts(training_pairs(corpus, config)) == {"helpful": 20, "harmless": 20}
    assert len(corpus.train_pairs) == 90 and len(corpus.held_out_pairs) == 10
    assert counts(corpus.held_out_pairs) == counts(corpus.held_out_prompts) == {"helpful": 5, "harmless": 5}
    assert counts(sampled_prompts(corpus, config)) == {"helpful": 2, "harmless": 2}
    assert list(count_by_source(corpus.held_out_pairs)) == sorted(files)  # the name: the path as it is configured


def test_every_part_is_fair_from_its_first_row_and_to_its_last(tmp_path):
    sizes = {"a": 300, "b": 77, "c": 20}
    pairs = [write(tmp_path / f"{name}.jsonl", pair_rows(name, size)) for name, size in sizes.items()]
    prompts = [write(tmp_path / f"p{name}.jsonl", prompt_rows(f"p{name}", size)) for name, size in sizes.items()]
    for given in ((), [*prompts, "toy"]):
        corpus, config = corpus_of([*pairs, "toy"], "fine.prompts=24", "evaluation.prompts=32", prompts=given)
        for part in (corpus.train_pairs, corpus.held_out_pairs, corpus.train_prompts, corpus.held_out_prompts):
            assert len(counts(part)) == 4
            assert_fair(part)
        whole, tried = counts(corpus.held_out_prompts), ratio_prompts(corpus, config)
        assert len(tried) == 24
        for name, size in whole.items():
            assert abs(counts(tried).get(name, 0) - 24 * size / sum(whole.values())) < 1
        # 397 rows, a tenth of each source up to a row: 30, 7.7 and 2.
        held = counts(corpus.held_out_pairs)
        assert held["a"] == 30 and held["b"] in (7, 8) and held["c"] == 2 and held["toy"] == 256


def test_what_the_comparison_asks_is_not_what_the_ratio_is_chosen_on(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", pair_rows(name, 500)) for name in ("a", "b")]
    corpus, config = corpus_of(files, "evaluation.prompts=60", "fine.prompts=40")
    compared, tried = compared_prompts(corpus, config), ratio_prompts(corpus, config)
    assert len(corpus.held_out_prompts) == 100 and not set(texts(compared)) & set(texts(tried))
    assert counts(compared) == {"a": 30, "b": 30} and counts(tried) == {"a": 20, "b": 20}
    few, config = corpus_of(files, "evaluation.prompts=90", "fine.prompts=40")  # as few of both as can be
    assert len(set(texts(compared_prompts(few, config))) & set(texts(ratio_prompts(few, config)))) == 30


def test_a_held_out_prompt_is_asked_once_however_often_the_data_have_it(tmp_path):
    """Three rows of each prompt, and a weight of 2: six copies to train on, one to compare on."""
    pairs = write(tmp_path / "pairs.jsonl", pair_rows("a", 20))
    rows = [row for row in prompt_rows("q", 200) for _ in range(3)]
    prompts = [{"path": write(tmp_path / "prompts.jsonl", rows), "weight": 2}]
    corpus, config = corpus_of([pairs], "evaluation.prompts=12", "fine.prompts=8", prompts=prompts)
    assert len(texts(corpus.held_out_prompts)) == len(set(texts(corpus.held_out_prompts))) == 20
    assert len(corpus.train_prompts) == 180 * 6 and corpus.skipped == {}
    assert not set(texts(compared_prompts(corpus, config))) & set(texts(ratio_prompts(corpus, config)))


@cache
def corpus_of_hh_sizes(folder, **data):
    """Two files as large as HH-RLHF's, in the order in which the shipped configurations name theirs."""
    files = []
    for name, rows in HH_ROWS.items():
        file = folder / f"{name}.csv"
        file.write_text("prompt,chosen,rejected\n" + "".join(f"{name} {row},a,b\n" for row in range(rows)))
        files.append(str(file))
    return load_corpus(load_config({"data": {**data, "preferences": files}}))


@pytest.fixture(scope="module")
def hh_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hh")


@pytest.mark.slow
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_configurations_train_and_compare_on_both_sources(file, hh_folder):
    config = load_config(file)
    assert [source.data_dir for source in config.data.preferences] == ["helpful-base", "harmless-base"]
    assert not config.data.prompts
    corpus = corpus_of_hh_sizes(hh_folder, held_out=config.data.held_out, max_held_out=config.data.max_held_out)
    share = Fraction(43_835, 86_372)  # 0.5075
    parts = {
        "pairs": (training_pairs(corpus, config), config.reward.max_pairs),
        "comparison": (compared_prompts(corpus, config), config.evaluation.prompts),
        "ratio": (ratio_prompts(corpus, config), config.fine.prompts),
        "samples": (sampled_prompts(corpus, config), config.coarse.sample_prompts),
        "held-out pairs": (corpus.held_out_pairs, 512),
    }
    for what, (items, size) in parts.items():
        assert len(items) == size, what
        assert abs(counts(items)["helpful"] - share * size) <= 1, (what, counts(items))
    assert 20_299 <= counts(parts["pairs"][0])["helpful"] <= 20_302  # 40,000 * 0.5075 = 20,300.6


# What is held out.


def prompts_of_all(items):
    return {" ".join(text.split()) for text in texts(items)}


def assert_no_leak(corpus):
    held = prompts_of_all([*corpus.held_out_pairs, *corpus.held_out_prompts])
    assert held and not held & prompts_of_all([*corpus.train_pairs, *corpus.train_prompts])


def test_a_prompt_that_is_held_out_is_in_no_training_pair(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", pair_rows("q", 1000))
    prompts = write(tmp_path / "prompts.jsonl", prompt_rows("q", 1000))
    corpus, _ = corpus_of([pairs], prompts=[prompts])
    assert_no_leak(corpus)
    assert len(corpus.held_out_prompts) == len(corpus.held_out_pairs) == 100
    assert prompts_of_all(corpus.held_out_prompts) == prompts_of_all(corpus.held_out_pairs)


@pytest.mark.parametrize(("pairs", "prompts"), [(1000, 100), (100, 1000), (60, 61)])
def test_no_leak_where_pairs_and_prompts_overlap_in_part(tmp_path, pairs, prompts):
    ours = write(tmp_path / "pairs.jsonl", pair_rows("q", pairs))
    theirs = write(tmp_path / "prompts.jsonl", prompt_rows("q", prompts) + prompt_rows("other", prompts))
    corpus, _ = corpus_of([ours], prompts=[theirs])
    assert_no_leak(corpus)
    # A tenth of each, or somewhat more where a prompt that the other needs is among them.
    assert pairs // 10 <= len(corpus.held_out_pairs) <= pairs // 10 + 2 * prompts // 10
    assert 2 * prompts // 10 <= len(corpus.held_out_prompts) <= 2 * prompts // 10 + pairs // 10


def test_pairs_of_one_prompt_copies_and_white_space_stay_on_one_side(tmp_path):
    rows = pair_rows("q", 100)
    spaced = [row | {"prompt": row["prompt"].replace(" ", "\n  "), "chosen": "other"} for row in rows]
    file = write(tmp_path / "pairs.jsonl", rows + [row | {"rejected": "worse"} for row in rows] + spaced)
    corpus, _ = corpus_of([{"path": file, "weight": 2}])
    assert_no_leak(corpus)
    assert len(corpus.held_out_pairs) == 60 and len(corpus.train_pairs) == 540  # 10 of 100 prompts, 6 rows each


def test_a_first_question_with_other_turns_after_it_is_another_prompt():
    first, later = Turn("human", "Hi"), (Turn("assistant", "Hello"), Turn("human", "Why?"))
    pairs = [Pair((first,), "a", "b"), Pair((first, *later), "a", "b")]
    corpus = split(pairs, [], load_config({}))
    assert len(corpus.train_pairs) == len(corpus.held_out_pairs) == 1


def test_what_is_held_out_does_not_depend_on_the_order_of_files_and_rows(tmp_path):
    rows = {name: pair_rows(name, 120) + pair_rows("shared", 30) for name in ("a", "b")}
    one = [write(tmp_path / f"{name}.jsonl", rows[name]) for name in ("a", "b")]
    prompts = [write(tmp_path / f"p{name}.jsonl", prompt_rows(name, 50)) for name in ("a", "c")]
    expected, _ = corpus_of(one, prompts=prompts)
    other = tmp_path / "other"
    other.mkdir()
    again = [write(other / f"{name}.jsonl", rows[name][::-1]) for name in ("b", "a")]
    found, _ = corpus_of(again, prompts=prompts[::-1])
    for part in ("train_pairs", "held_out_pairs", "train_prompts", "held_out_prompts"):
        assert texts(getattr(found, part)) == texts(getattr(expected, part)), part
    assert_no_leak(expected)


def test_rows_that_are_added_move_few_others(tmp_path):
    before, _ = corpus_of([write(tmp_path / "a.jsonl", pair_rows("q", 1000))])
    after, _ = corpus_of([write(tmp_path / "b.jsonl", pair_rows("q", 1100))])
    was, now = set(texts(before.held_out_pairs)), set(texts(after.held_out_pairs))
    assert len(was) == 100 and len(now) == 110
    assert len(was & now) >= 90  # of the hundred new rows about ten are held out, so that about one of the old moves


def test_another_seed_holds_out_others(tmp_path):
    file = write(tmp_path / "a.jsonl", pair_rows("q", 200))
    held = [set(texts(corpus_of([file], f"run.seed={seed}")[0].held_out_pairs)) for seed in (0, 1)]
    assert len(held[0] & held[1]) <= 10  # by chance 20 * 20 / 200 = 2


@pytest.mark.parametrize(
    ("rows", "overrides", "held"),
    [(2, [], 1), (9, [], 1), (30, [], 3), (100, ["data.held_out=0.3"], 30), (300, ["data.max_held_out=8"], 8)],
)
def test_share_cap_and_at_least_one(tmp_path, rows, overrides, held):
    corpus, _ = corpus_of([write(tmp_path / "a.jsonl", pair_rows("q", rows))], *overrides)
    sizes = [len(part) for part in corpus[:4]]
    assert sizes == [rows - held, held, rows - held, held] and corpus.skipped == {}


def test_the_cap_holds_where_prompts_need_more_of_one_source(tmp_path):
    pairs = [write(tmp_path / f"{name}.jsonl", pair_rows(name, 1000)) for name in ("a", "b")]
    prompts = write(tmp_path / "p.jsonl", prompt_rows("a", 1000))
    corpus, _ = corpus_of(pairs, "data.max_held_out=20", prompts=[prompts])
    assert_no_leak(corpus)
    assert counts(corpus.held_out_pairs) == {"a": 10, "b": 10} and len(corpus.held_out_prompts) == 20
    # The prompts' twenty are all of a: ten of their pairs are neither trained nor evaluated on, which is said.
    assert counts(corpus.train_pairs) == {"a": 980, "b": 990}
    assert corpus.skipped == {"held out beyond data.max_held_out": 10}


def test_one_prompt_alone_is_no_corpus(tmp_path):
    with pytest.raises(DataError, match="no usable held-out pairs; expected at least one of each"):
        corpus_of([write(tmp_path / "a.jsonl", pair_rows("q", 1))])


def test_the_last_prompt_to_train_on_is_never_held_out():
    def turns(text):
        return (Turn("human", text),)

    for first in range(20):  # whichever of the three has the lowest number
        one, two, three = (turns(f"{first} {name}") for name in ("one", "two", "three"))
        pairs, prompts = [Pair(each, "a", "b") for each in (one, two)], [Prompt(each, {}) for each in (two, three)]
        corpus = split(pairs, prompts, load_config({}))
        assert [len(part) for part in corpus[:4]] == [1, 1, 1, 1]
        assert_no_leak(corpus)


def test_the_toy_world_keeps_its_split_among_others(tmp_path):
    from lite_c2f.toy import world

    toy = [pair.turns[0].text for pair in world.pairs(256, 0, held_out=True)[:40]]
    rows = [{"prompt": text, "chosen": "a", "rejected": "b"} for text in toy] + pair_rows("q", 100)
    corpus, _ = corpus_of(["toy", write(tmp_path / "a.jsonl", rows)])
    assert_no_leak(corpus)
    assert counts(corpus.held_out_prompts)["toy"] == 512 and counts(corpus.train_prompts)["toy"] == 4096
    assert counts(corpus.held_out_pairs)["toy"] == 256 and counts(corpus.train_pairs)["toy"] == 2720
    # What the toy world holds out is held out of the file: 40 rows, which fill the file's share of 14.
    assert set(toy) & prompts_of_all(corpus.train_pairs) == set() and counts(corpus.train_pairs)["a"] == 100
    alone, _ = corpus_of(["toy"])
    assert set(texts(alone.held_out_prompts)) == {p.turns[0].text for p in world.prompts(512, 0, held_out=True)}
    assert all("toy_answer" in prompt.extra for prompt in alone.held_out_prompts)


# What is made of it.


def test_ppo_asks_every_source_in_its_share_in_every_pass(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", pair_rows(name, rows)) for name, rows in (("a", 40), ("b", 200))]
    corpus, config = corpus_of(files)
    assert counts(corpus.train_prompts) == {"a": 36, "b": 180}
    places = PromptQueue(config, corpus, None)._next(3 * 216)
    passes = [places[:216], places[216:432], places[432:]]
    for each in passes:
        assert sorted(each) == list(range(216))
        assert_fair([corpus.train_prompts[place] for place in each])
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_ppo_goes_on_where_it_stopped(tmp_path):
    corpus, config = corpus_of([write(tmp_path / "a.jsonl", pair_rows("a", 40)), "toy"], "run.seed=3")
    one, other = PromptQueue(config, corpus, None), PromptQueue(config, corpus, None)
    one._next(5000)
    other.go_to(5000)
    assert one._next(50) == other._next(50) and one.taken == other.taken == 5050


class Notes(SilentSink):
    def __init__(self):
        self.notes = []

    def on_message(self, text):
        self.notes.append(text)


def test_a_run_says_what_it_has_of_each_source(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", pair_rows(name, 50)) for name in ("helpful", "harmless")]
    sink = Notes()
    report_data(sink, *corpus_of(files, "reward.max_pairs=40"))
    assert sink.notes[:3] == [
        "data: 40 pairs and 90 prompts to train on, 10 pairs and 10 prompts held out",
        "  harmless.jsonl: 20 pairs and 45 prompts, 5 and 5 held out",
        "  helpful.jsonl: 20 pairs and 45 prompts, 5 and 5 held out",
    ]
    alone = Notes()
    report_data(alone, *corpus_of(files[:1]))
    assert alone.notes[0].startswith("data: 45 pairs") and "helpful" not in "".join(alone.notes)


def test_fewer_prompts_than_evaluations_ask_for_are_named(tmp_path):
    file = write(tmp_path / "a.jsonl", pair_rows("a", 50))  # 5 of 50 prompts are held out
    for wanted, told in ((6, True), (5, False)):
        for key in ("coarse.evaluate_prompts", "evaluation.prompts"):
            settings = ["fine.ratio=1", "coarse.evaluate_every=2", "coarse.evaluate_prompts=5", "evaluation.prompts=5"]
            sink = Notes()
            report_data(sink, *corpus_of([file], *settings, f"{key}={wanted}"))
            assert (f"{key}={wanted}: 5 prompts are held out, and all are answered" in sink.notes) == told


def test_a_ratio_that_is_tried_on_compared_prompts_is_told(tmp_path):
    file = write(tmp_path / "a.jsonl", pair_rows("a", 100))  # 10 of 100 prompts are held out
    for ratio, tried, told in (("auto", 5, True), ("auto", 4, False), ("1", 5, False)):
        sink = Notes()
        report_data(sink, *corpus_of([file], f"fine.ratio={ratio}", f"fine.prompts={tried}", "evaluation.prompts=6"))
        assert any("11 held-out prompts: there are 10" in note for note in sink.notes) == told


def test_a_run_names_rows_that_are_skipped_and_columns_that_are_not_read(tmp_path):
    rows = pair_rows("a", 50)
    file = write(tmp_path / "a.jsonl", [rows[0] | {"id": 7}, rows[1] | {"chosen": 5}, *rows[2:]])
    sink = Notes()
    report_data(sink, *corpus_of([file]))
    assert sink.notes[-2:] == [
        f"rows skipped: 1 'chosen' is a number (first at {file}:2)",
        f"{file}: not used: columns id",
    ]


def test_a_run_of_an_earlier_split_is_told(tmp_path):
    sink = Notes()
    report_split(sink, tmp_path)
    write_json(tmp_path / "reward" / "metrics.json", {"accuracy": 0.9, "pairs_by_source": {"toy": 1}})
    report_split(sink, tmp_path)
    assert sink.notes == []
    write_json(tmp_path / "reward" / "metrics.json", {"accuracy": 0.9})
    report_split(sink, tmp_path)
    assert len(sink.notes) == 1 and "split the data in another way" in sink.notes[0]


def test_an_empty_split_is_empty():
    assert split([], [], load_config({})) == Corpus([], [], [], [], {})
