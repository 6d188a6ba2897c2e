"""Trial of reward functions on two rows of the run's own data, before anything is trained."""

from collections.abc import Sequence

from lite_c2f.config.settings import Config
from lite_c2f.data.records import Prompt
from lite_c2f.reward.calls import RESUME, RewardError
from lite_c2f.reward.functions import RewardInputs
from lite_c2f.reward.sources import Judges, row_of

ROWS = 2
ANSWER_COLUMNS = ("answer", "response", "completion", "solution", "output")  # whose text stands for a response


def try_functions(config: Config, prompts: Sequence[Prompt]) -> list[str]:
    """Call every function once on two rows; returns a line for each row and function with what it gave.

    The response is the text of the row's answer column, or else the prompt's own text: no model has written one. Its
    token ids are the numbers of its words. Raises RewardError naming the function, the row and what it gave.
    """
    functions = [source for source in config.coarse.judges if source.function is not None]
    chosen = list(prompts[:ROWS])
    if not functions or not chosen:
        return []
    inputs = trial_inputs(chosen)
    messages: list[str] = []
    judges = Judges.of(config, {}, None, messages.append)
    try:
        scores = judges.function_scores(inputs, chosen, functions)
    except RewardError as error:
        raise RewardError(str(error).replace(RESUME, "correct it")) from None  # no run was begun
    finally:
        judges.close()
    lines = []
    for row in range(len(chosen)):
        shown = _short(inputs.prompts[row]), _short(inputs.responses[row]), ", ".join(inputs.rows[row]) or "none"
        lines.append("prompt {}, response {}, columns: {}".format(*shown))
        for name, values in scores.items():
            value = values[row]
            lines.append(f"  {name}: {'does not apply' if value is None else f'{value:g}'}")
    return lines + messages


def trial_inputs(prompts: Sequence[Prompt]) -> RewardInputs:
    """What functions get of these rows with a response that no model has written."""
    rows = [row_of(prompt) for prompt in prompts]
    texts = [prompt.turns[-1].text for prompt in prompts]
    responses = [
        str(next((row[column] for column in ANSWER_COLUMNS if column in row), text))
        for row, text in zip(rows, texts, strict=True)
    ]
    numbers: dict[str, int] = {}
    token_ids = [[numbers.setdefault(word, len(numbers)) for word in response.split()] for response in responses]
    turns = [[(turn.role, turn.text) for turn in prompt.turns] for prompt in prompts]
    return RewardInputs(texts, responses, token_ids, ["eos"] * len(rows), rows, turns)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
