"""Short tour of the page: a step for each part that a visitor meets first. `tour.js` frames that part."""

from typing import NamedTuple

from lite_c2f.ui.escaping import fill


class TourStep(NamedTuple):
    """target: selector of the part, or the label of a tab."""

    target: str
    title: str
    text: str


STEPS = (
    TourStep(
        "#ask",
        "Ask a question",
        "Type one below, or press an example. All actors answer it at once, each in a pane of its own.",
    ),
    TourStep(
        "#pane-coarse",
        "Coarse Actor",
        "The base model after reinforcement learning, never tuned on instructions: thorough, and often too long.",
    ),
    TourStep(
        "#pane-fine",
        "Fine Actor",
        "The instruct model, with the change of weights that this learning made added to its own: meant to be as "
        "thorough as Coarse, and to the point.",
    ),
    TourStep(
        "#pane-baseline", "Baseline", "The same instruct model without that change: what Fine should be better than."
    ),
    TourStep(
        "#summary-line",
        "Figures",
        "After an answer: tokens, reward (higher is better, 0 is the reward model's average), repetition (lower is "
        "better) and time. The best are marked, and a fold below says what each means.",
    ),
    TourStep(
        "#ratio-row",
        "Ratio",
        "How much of that change Fine has: 0 is the baseline, 1 all of it. Move it and press the button to see the "
        "same question answered at another ratio; the tab Ratios shows several at once.",
    ),
    TourStep(
        "Blind vote",
        "Blind vote",
        "Judge answers without seeing whose they are. Votes are kept, and can become training data.",
    ),
    TourStep(
        "Evaluation", "Evaluation", "All held-out questions with every actor's answers, and your own sets of questions."
    ),
    TourStep(
        "Runs", "Runs", "Trainings, finished and going on, with their curves; on this machine new ones can be started."
    ),
)


def tour() -> str:
    """The tour as HTML, closed, with the button that opens it."""
    return fill("tour.html", steps=STEPS)
