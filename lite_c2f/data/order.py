"""Order of the data: one seeded shuffle of all sources, in which every prefix holds each source in its share.

Files are often sorted by source, and by topic within a source, so that their first n rows are no sample. Here an
item's position depends on a seeded hash of its text, not on its row or on the order of the files.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

import xxhash

_Item = TypeVar("_Item", bound=Any)  # Pair or Prompt


def shuffled(items: Sequence[_Item], seed: int) -> list[_Item]:
    """All items in an order that depends on their texts and the seed alone.

    A row that occurs several times, in the data or by its weight, is repeated only after every other row was used once.
    In the first m of N items a source with n of them has m * n / N, up to less than one row, and so in the last m: see
    `interleaved`.
    """
    by_source: dict[str, list[tuple[int, _Item]]] = {}
    for item in items:
        by_source.setdefault(item.source, []).append((content_hash(item, f"order {seed}"), item))
    sources = [_repeats_last(sorted(rows, key=itemgetter(0))) for rows in by_source.values()]
    sources.sort(key=lambda rows: (rows[0][0], sum(number for number, _ in rows)))  # a fixed order among equal ones
    queues = [iter(rows) for rows in sources]
    return [next(queues[source])[1] for source in interleaved([len(rows) for rows in sources])]


def _repeats_last(rows: list[tuple[int, _Item]]) -> list[tuple[int, _Item]]:
    """Sorted rows, with the second occurrences of a number after all first occurrences, and so on."""
    before: Counter[int] = Counter()
    if len({number for number, _ in rows}) == len(rows):
        return rows
    copies = []
    for number, _ in rows:
        copies.append(before[number])
        before[number] += 1
    return [rows[place] for place in sorted(range(len(rows)), key=copies.__getitem__)]


def interleaved(sizes: Sequence[int]) -> Iterator[int]:
    """Numbers of sources with these sizes, each as often as its size, so that every prefix is fair.

    Among the first m of N, source i occurs m * n_i / N times up to 1 - 1 / (2S - 2) for S sources (1/2 for two), the
    best possible bound. The rule is Tijdeman's ("The chairman assignment problem", 1980): of the sources that would not
    be too early, the one with the earliest deadline. Sorting by (k + 1/2) / n_i, which looks as fair, is off by more
    than a row for four or more sources.
    """
    total, slack = sum(sizes), max(1, 2 * len(sizes) - 2)
    counts = [0] * len(sizes)

    def release(source: int) -> int:
        """The first position at which the source's next row is not too early."""
        return -(-(1 + slack * counts[source]) * total // (slack * sizes[source]))

    waiting = [(release(source), source) for source, size in enumerate(sizes) if size]
    ready: list[tuple[float, int]] = []  # (deadline in units of `total`, source)
    heapify(waiting)
    for place in range(1, total + 1):
        while waiting and waiting[0][0] <= place:
            source = heappop(waiting)[1]
            heappush(ready, ((slack * (counts[source] + 1) - 1) / sizes[source], source))
        source = heappop(ready)[1]
        counts[source] += 1
        heappush(waiting, (release(source), source))
        yield source


def conversation_hash(turns: Sequence[tuple[str, str]], seed: int) -> int:
    """A hash of a row's prompt: equal for conversations whose turns are all equal.

    Prompts that differ only in white space count as equal. The same first question with other turns after it is another
    prompt.
    """
    return _hash(f"split {seed}", *(part for role, text in turns for part in (role, " ".join(text.split()))))


def held_out(
    parts: Sequence[Sequence[tuple[str, int]]], share: float, max_count: int, already_held: Collection[int] = ()
) -> set[int]:
    """Hashes of the prompts that are never trained on, chosen once for all parts (pairs, prompts).

    parts: (source, `conversation_hash`) of every row. Of each part a share of its different prompts is held out, at
    most `max_count`, at least one where there are two, from each source in proportion: those with the lowest hashes, so
    that the order of rows does not matter and rows that are added later move few others. already_held: prompts that are
    held out in any case. What is held out of one part is held out of all, which may make it more than `max_count` in
    another.
    """
    chosen = set(already_held)
    members = [_numbers_by_source(part) for part in parts]
    trainable = [set().union(*sources.values()) - chosen for sources in members]  # of each part
    for sources in sorted(members, key=lambda sources: sum(map(len, sources.values()))):
        quotas = _quotas(sources, share, max_count)
        for source, numbers in sources.items():
            quotas[source] -= len(numbers & chosen)
        for number in sorted(set().union(*sources.values()) - chosen):
            if all(count <= 0 for count in quotas.values()):
                break
            owners = [source for source, numbers in sources.items() if number in numbers]
            if any(quotas[source] > 0 for source in owners) and {number} not in trainable:  # never the last to train on
                chosen.add(number)
                quotas.update({source: quotas[source] - 1 for source in owners})
                for remaining in trainable:
                    remaining.discard(number)
    return chosen


def at_most(part: Sequence[tuple[str, int]], held: set[int], max_count: int) -> set[int]:
    """The held-out prompts that a part is evaluated on: at most `max_count`, where other parts made them more.

    From each source in proportion to its prompts, those with the lowest hashes. The others are not trained on either.
    """
    sources = _numbers_by_source(part)
    if len(set().union(*sources.values()) & held) <= max_count:
        return held
    quotas = _quotas(sources, 1.0, max_count)
    return {number for name, numbers in sources.items() for number in sorted(numbers & held)[: quotas[name]]}


def _numbers_by_source(rows: Sequence[tuple[str, int]]) -> dict[str, set[int]]:
    places: dict[str, set[int]] = {}
    for source, number in rows:
        places.setdefault(source, set()).add(number)
    return dict(
        sorted(places.items(), key=lambda source: (min(source[1]), sum(source[1])))
    )  # independent of the order of files


def _quotas(sources: dict[str, set[int]], share: float, max_count: int) -> dict[str, int]:
    """How many prompts of each source to hold out."""
    sizes = [len(numbers) for numbers in sources.values()]
    count = max(1, min(round(sum(sizes) * share), max_count)) if sum(sizes) > 1 else 0
    counts = Counter(islice(interleaved(sizes), count))
    return {source: counts[place] for place, source in enumerate(sources)}


def content_hash(item: Any, salt: str) -> int:
    """A hash of a pair or a prompt, without its last field, the source, whose name may be a path."""
    return _hash(salt, repr(item[:-1]))


def count_by_source(items: Sequence[Any]) -> dict[str, int]:
    """{source: items of it}, by name."""
    return dict(sorted(Counter(item.source for item in items).items()))


def short_names(sources: Iterable[str]) -> dict[str, str]:
    """{source: the shortest end of its path that no other source has}, by name.

    >>> short_names(["/data/a/helpful.jsonl", "/data/a/harmless.jsonl"])
    {'/data/a/harmless.jsonl': 'harmless.jsonl', '/data/a/helpful.jsonl': 'helpful.jsonl'}
    """
    parts = {source: source.split("/") for source in sorted(set(sources))}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {source: "/".join(part[-length:]) for source, part in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {source: source for source in parts}


def _hash(*texts: str) -> int:
    return xxhash.xxh3_64_intdigest("\x1f".join(texts).encode(errors="backslashreplace"))
