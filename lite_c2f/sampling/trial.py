"""Trial of a model's class: whether sampler and PPO compute the same with it as its own forward pass.

Runs on a small copy with random weights (`backbone.model_kind.small_copy`) in a fraction of a second, before anything
is downloaded or trained. So an untested family is refused by its behaviour, not by its name.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lite_c2f.backbone.lm_head import LanguageHead
from lite_c2f.backbone.model_kind import OTHER_MODEL, refused, small_copy
from lite_c2f.backbone.multi_model import MultiModel
from lite_c2f.errors import ModelError
from lite_c2f.sampling.draw import Sampling
from lite_c2f.sampling.schedule import sample

PROMPTS = ((1, 7, 9, 30, 31, 5, 8, 21, 13), (1, 40), (1, 12, 6, 5))  # one is longer than a small copy's window
TOKENS = 12  # of each response
PASSED: set[tuple[str, bool]] = set()  # of this process: config.json, and whether it is quantised
TOLERANCE = 1e-3  # nats, of a log-probability in float32; a wrong mask or scale is tenths


def try_kind(folder: Path, *, quantized: bool) -> None:
    """Raise ModelError unless a model of this folder's class can be trained here, naming the class and the reason.

    quantized: it is loaded in 4 bits. No weights are read. A config.json that passed is not tried again.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, __version__

    key = (folder / "config.json").read_text(encoding="utf-8"), quantized
    if key in PASSED:
        return
    settings = read_settings(folder)
    if type(settings) not in AutoModelForSequenceClassification._model_mapping:
        raise refused(
            folder, f"has no sequence classifier in Transformers {__version__}, which the reward stage trains"
        )
    with quiet():
        try:
            model = small_copy(folder, AutoModelForCausalLM)
            classifier = small_copy(folder, AutoModelForSequenceClassification)
            reason = difference(model)
        except Exception as error:  # a class may raise anything at unusual sizes or inputs
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise refused(folder, f"fails where the sampler calls its decoder ({line})") from None
    if reason is None and not isinstance(getattr(classifier, "score", None), nn.Module):
        reason = "has a sequence classifier whose head is not one linear layer"
    if reason is not None:
        raise refused(folder, reason)
    custom = custom_linear(model)
    if quantized and custom:
        raise refused(
            folder,
            f"has linear layers of another class ({custom}), which Transformers {__version__} leaves unquantised",
            f"set model.quantization=none if there is memory for it, or {OTHER_MODEL}",
        )
    PASSED.add(key)


def read_settings(folder: Path) -> Any:
    """The configuration of a folder's model. Raises ModelError for one that its class does not take."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each class has checks of its own
        reason = " ".join(str(error).split())[:160]
        raise ModelError.because(
            f"'{folder / 'config.json'}' is no configuration that Transformers takes ({reason})",
            "the file that came with the model",
            "download the model again",
        ) from None


@torch.no_grad()
def difference(model: Any) -> str | None:
    """First difference between PPO or the sampler and the model's own forward pass, as a reason; None where none."""
    decoder, head = model.get_decoder(), LanguageHead.of(model)
    row = torch.tensor([PROMPTS[0]])
    own, hidden = model(row, use_cache=False).logits.float(), decoder(input_ids=row, use_cache=False).last_hidden_state
    if not torch.allclose(head(hidden), own, atol=TOLERANCE):
        return "does more between its last layer and its logits than a head, its scale and its softcap"
    changed = row.clone()
    changed[:, -1] = 50
    after = decoder(input_ids=changed, use_cache=False).last_hidden_state
    if not torch.allclose(after[:, :-1], hidden[:, :-1], atol=TOLERANCE):
        return "lets a token see those behind it: it is no causal decoder"
    responses = sample(model, PROMPTS, Sampling(TOKENS, seed=1), eos_ids=[], pad_id=0, batch=2)
    for prompt, tokens, logprobs in zip(PROMPTS, responses.tokens, responses.logprobs, strict=True):
        row = torch.tensor([[*prompt, *tokens]])
        truth = model(row, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        truth = truth[range(len(tokens)), tokens]
        if not torch.allclose(torch.tensor(logprobs), truth, atol=TOLERANCE):
            return "gives other log-probabilities token by token, from a cache, than in one pass"
    multi_model = MultiModel([model, model], {})
    row = torch.tensor(PROMPTS[:1]).expand(3, -1)
    hidden = multi_model.hidden(row, [0, 0, 1], [0.0] * 3, None)
    if not torch.allclose(multi_model.logits(hidden[:, -1]), own[0, -1].expand(3, -1), atol=TOLERANCE):
        return "gives other logits beside another model of its kind, as the chat has them"
    return None


def custom_linear(model: Any) -> str | None:
    """The class of a linear layer that is derived from nn.Linear, which Transformers does not make 4-bit."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear and module is not head:
            return type(module).__name__
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings about a copy's odd sizes inside the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
