"""Questions for a small real model: word problems and everyday questions in plain English, most with an answer.

Each kind is a function of a random generator. Texts are our own. An answer is read from a response by `is_right`:
a number or a time is the last one that the response writes, a choice is the last of its options that it names. Open
questions have no answer to check. One question in five, chosen by its text, is held out.
"""

import random
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Iris", "Jonas", "Kate", "Leo", "Maria",
    "Noah", "Olga", "Paul", "Rosa", "Simon", "Tara", "Victor",
)  # fmt: skip
GOODS = (
    ("apple", "apples"), ("pencil", "pencils"), ("notebook", "notebooks"), ("orange", "oranges"),
    ("candle", "candles"), ("postcard", "postcards"), ("muffin", "muffins"), ("tulip", "tulips"),
    ("marble", "marbles"), ("sticker", "stickers"), ("sandwich", "sandwiches"), ("button", "buttons"),
    ("shell", "shells"), ("ticket", "tickets"), ("battery", "batteries"),
)  # fmt: skip
CONTAINERS = (
    ("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("shelf", "shelves"), ("jar", "jars"),
    ("tray", "trays"),
)  # fmt: skip
PLACES = (
    "at the market", "in the kitchen", "at school", "in the garden shed", "at the library", "on the train",
    "at work",
)  # fmt: skip
TASKS = (
    "cooking dinner", "cleaning the bathroom", "answering emails", "watering the plants", "walking the dog",
    "ironing shirts", "reading a chapter", "repairing a bike", "calling a friend", "buying groceries",
    "washing the car", "sorting papers",
)  # fmt: skip
ADJECTIVES = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))
OPEN = (
    "How can I remove a coffee stain from a cotton shirt?",
    "Why does bread rise when yeast is added to the dough?",
    "What should I check before I buy a used bicycle?",
    "How do I keep lettuce fresh for a week?",
    "Why do we have leap years?",
    "How can I fall asleep faster at night?",
    "What is a good way to learn ten new words each day?",
    "Why does ice float on water?",
    "How should I prepare for a job interview?",
    "What can I cook with rice, eggs and a carrot?",
    "How do I write a polite note to a noisy neighbor?",
    "Why do leaves change their color in autumn?",
    "How can a family of four spend less on electricity?",
    "What should I pack for a weekend of hiking?",
    "How do I choose a password that is hard to guess?",
    "Why is it warmer in summer than in winter?",
    "How can I stop forgetting where I put my keys?",
    "What is the difference between weather and climate?",
    "How do I plan a birthday party for a six-year-old child?",
    "Why should one not mix different cleaning products?",
    "How can I get a cat used to a new home?",
    "What makes a good summary of a long article?",
    "How do I grow tomatoes on a balcony?",
    "Why do we see lightning before we hear thunder?",
    "How can two people share a small kitchen without quarrels?",
    "What should I do when my bicycle tire is flat?",
    "How do I know whether an egg is still good?",
    "Why does a metal spoon feel colder than a wooden one?",
    "How can I make a cup of tea without a kettle?",
    "What are the advantages of taking the train instead of a car?",
    "How do I explain fractions to a child?",
    "Why do onions make people cry?",
    "How can I save money for a trip in six months?",
    "What should be in a first-aid box at home?",
    "How do I ask my manager for a day off?",
    "Why do ships made of steel not sink?",
    "How can I read more books this year?",
    "What is a simple way to compare the prices of two packages?",
    "How do I clean a window without streaks?",
    "Why does the moon change its shape during a month?",
)  # fmt: skip


class CheckedQuestion(NamedTuple):
    """A question and how its answer is checked: a number, a time, one of `options`, or not at all (answer None)."""

    kind: str
    text: str
    answer: str | None = None
    options: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Decided by the text alone, one in five."""
        return zlib.crc32(self.text.encode()) % 5 == 0


def _some(rng: random.Random, low: int, high: int, noun: tuple[str, str]) -> tuple[int, str]:
    number = rng.randint(low, high)
    return number, f"{number} {noun[0] if number == 1 else noun[1]}"


def shopping(rng: random.Random) -> CheckedQuestion:
    """Two kinds of goods at a price each: the total."""
    who, (one, many), (other, others) = rng.choice(PEOPLE), *rng.sample(GOODS, 2)
    count, price, more, second = rng.randint(2, 6), rng.randint(2, 9), rng.randint(2, 5), rng.randint(2, 8)
    start = (
        f"{who} buys {count} {many} for {price} dollars each and {more} {others} for {second} dollars each.",
        f"One {one} costs {price} dollars and one {other} costs {second} dollars. "
        f"{who} takes {count} {many} and {more} {others}.",
    )
    end = rng.choice((f"How much does {who} pay in total?", "What is the total price in dollars?"))
    return CheckedQuestion("shopping", f"{rng.choice(start)} {end}", str(count * price + more * second))


def stock(rng: random.Random) -> CheckedQuestion:
    """A count, a gain and a loss: what is left."""
    who, (_, many) = rng.choice(PEOPLE), rng.choice(GOODS)
    start, gain, loss = rng.randint(8, 30), rng.randint(3, 15), rng.randint(2, 8)
    verbs = rng.choice((("finds", "gives away"), ("gets", "loses"), ("buys", "sells"), ("receives", "uses")))
    text = (
        f"{who} has {start} {many} {rng.choice(PLACES)}. {who} {verbs[0]} {gain} more and then {verbs[1]} {loss}. "
        f"How many {many} does {who} have now?"
    )
    return CheckedQuestion("stock", text, str(start + gain - loss))


def packing(rng: random.Random) -> CheckedQuestion:
    """Goods in containers, with some left over or none: how many of either."""
    (_, many), (box, boxes) = rng.choice(GOODS), rng.choice(CONTAINERS)
    each, full, rest = rng.randint(3, 9), rng.randint(3, 9), rng.randint(2, 5)
    if rng.random() < 0.5:
        text = f"There are {full} {boxes} with {each} {many} in each, and {rest} more on the table. "
        text += f"How many {many} are there?"
        return CheckedQuestion("packing", text, str(full * each + rest))
    text = f"{full * each} {many} are put into {boxes}, {each} in each {box}. How many {boxes} are needed?"
    return CheckedQuestion("packing", text, str(full))


def sharing(rng: random.Random) -> CheckedQuestion:
    """Some put aside, the rest shared equally: each one's share."""
    first, second = rng.sample(PEOPLE, 2)
    (_, many), people = rng.choice(GOODS), rng.randint(2, 6)
    each, eaten = rng.randint(3, 9), rng.randint(1, 4)
    text = (
        f"{first} and {second} have {people * each + eaten} {many}. They put {eaten} aside and share the rest equally "
        f"among {people} friends. How many {many} does each friend get?"
    )
    return CheckedQuestion("sharing", text, str(each))


def clock(hour: int, minute: int) -> str:
    """A time of day, as `9:05`."""
    return f"{hour}:{minute:02d}"


def arrival(rng: random.Random) -> CheckedQuestion:
    """A beginning and a duration in minutes: the time of the end."""
    hour, minute, takes = (
        rng.randint(7, 10),
        rng.choice((5, 10, 15, 20, 25, 30, 35, 40, 45, 50)),
        rng.choice((25, 35, 40, 55, 70, 85)),
    )
    what = rng.choice(("The train", "The bus", "A ferry", "The tour", "The film", "The lesson", "The match"))
    verbs = ("leaves", "arrive") if what in ("The train", "The bus", "A ferry") else ("begins", "end")
    end = 60 * hour + minute + takes
    text = f"{what} {verbs[0]} at {clock(hour, minute)} and takes {takes} minutes. At what time does it {verbs[1]}?"
    return CheckedQuestion("arrival", text, clock(*divmod(end, 60)))


def schedule(rng: random.Random) -> CheckedQuestion:
    """Two tasks within a number of minutes: yes or no."""
    who, (first, second) = rng.choice(PEOPLE), rng.sample(TASKS, 2)
    a, b = rng.choice((15, 20, 25, 30, 35, 40, 45)), rng.choice((20, 25, 30, 35, 40, 50))
    slack = rng.choice((-20, -15, -10, 5, 10, 15))
    text = (
        f"{who} has {a + b + slack} minutes. {first.capitalize()} takes {a} minutes and {second} takes {b} minutes. "
        f"Is there enough time for both? Answer yes or no and say why."
    )
    return CheckedQuestion("schedule", text, "yes" if slack > 0 else "no", ("yes", "no"))


def order(rng: random.Random) -> CheckedQuestion:
    """Three people compared in pairs: who is first or last."""
    comparative, most, least = rng.choice(ADJECTIVES)
    a, b, c = rng.sample(PEOPLE, 3)
    facts = [f"{a} is {comparative} than {b}.", f"{b} is {comparative} than {c}."]
    rng.shuffle(facts)
    high = rng.random() < 0.5
    text = f"{' '.join(facts)} Who is the {most if high else least} of the three?"
    return CheckedQuestion("order", text, a if high else c, (a, b, c))


def offer(rng: random.Random) -> CheckedQuestion:
    """Two shops with packs of different sizes for one price: which gives more."""
    (_, many), (shop, other) = rng.choice(GOODS), rng.sample(("Green", "Miller", "North", "Star", "Corner", "Lake"), 2)
    packs, size, packs2, size2 = rng.randint(2, 5), rng.randint(4, 9), rng.randint(2, 5), rng.randint(4, 9)
    if packs * size == packs2 * size2:
        size2 += 1
    text = (
        f"The {shop} shop gives {packs} packs of {size} {many} for ten dollars. The {other} shop gives {packs2} packs "
        f"of {size2} {many} for the same price. Which shop gives more {many}?"
    )
    return CheckedQuestion("offer", text, shop if packs * size > packs2 * size2 else other, (shop, other))


def open_question(rng: random.Random) -> CheckedQuestion:
    """One of `OPEN`, which has no answer to check."""
    return CheckedQuestion("open", rng.choice(OPEN))


KINDS: tuple[Callable[[random.Random], CheckedQuestion], ...] = (
    shopping, stock, packing, sharing, arrival, schedule, order, offer, open_question,
)  # fmt: skip


def questions(count: int, seed: int, *, held_out: bool) -> list[CheckedQuestion]:
    """Different questions of all kinds in turn, from one side of the split. Open ones are as many as there are.

    >>> len({question.text for question in questions(400, 0, held_out=False)})
    400
    """
    rng, turn = random.Random(seed), 0
    result: dict[str, CheckedQuestion] = {}
    open_left = sum(CheckedQuestion("open", text).held_out == held_out for text in OPEN)
    while len(result) < count:
        kind = KINDS[turn % len(KINDS)]
        turn += 1
        if kind is open_question and not open_left:
            continue
        question = kind(rng)
        if question.held_out == held_out and question.text not in result:
            result[question.text] = question
            open_left -= kind is open_question
    return list(result.values())


def is_right(question: CheckedQuestion, response: str) -> bool | None:
    """Is the answer that a response ends with the right one? None where there is nothing to check.

    >>> is_right(CheckedQuestion("stock", "", "12"), "8 and 4 make 12 apples.")
    True
    """
    if question.answer is None:
        return None
    if question.options:
        named = re.findall(rf"\b({'|'.join(map(re.escape, question.options))})\b", response, re.IGNORECASE)
        return bool(named) and _choice(question, named).lower() == question.answer.lower()
    if ":" in question.answer:
        times = re.findall(r"\b(\d{1,2}:\d\d)\b", response)
        return bool(times) and times[-1].lstrip("0") == question.answer
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", response)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(question.answer)


def _choice(question: CheckedQuestion, named: list[str]) -> str:
    """Yes or no stands at the beginning of an answer, a name at its end."""
    return named[0] if question.kind == "schedule" else named[-1]
