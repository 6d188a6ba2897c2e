"""Toy pair: the toy world's tokenizer, base and instruct model, trained from scratch once, into a cache.

They are real Hugging Face folders (Mistral architecture), written whole or not at all, and named by a hash of
everything they depend on. Sizes and schedules were chosen by measurement: see benchmarks/LOG.md.
"""

import hashlib
import inspect
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from lite_c2f.storage.cache import cache_root
from lite_c2f.storage.files import publish_folder
from lite_c2f.toy import world

BOS, EOS, PAD, INST, END_INST = "<s>", "</s>", "<pad>", "[INST]", "[/INST]"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
Progress = Callable[[str, int, int, float], None]


# What the models' texts come from: a change here is another toy world, and another folder in the cache.
_DEPENDS: tuple[Any, ...] = (
    world.World,
    world.Problem,
    world.problems,
    world.analytic,
    world.direct,
    world.rambling,
    world.base_answer,
    world.instruct_answer,
)


class Recipe(NamedTuple):
    """What the toy models are made of and how long they are trained."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    base_steps: int = 800
    base_batch: int = 32
    base_tokens: int = 96  # per row
    base_lr: float = 1e-2
    instruct_steps: int = 130
    instruct_batch: int = 24
    instruct_lr: float = 5e-4
    seed: int = 0
    toy: world.World = world.World()


class ToyPair(NamedTuple):
    """Folders of the two models."""

    base: Path
    instruct: Path


def toy_folder(recipe: Recipe = Recipe()) -> Path:
    """Where the cache keeps the models of a recipe: named by all that they depend on."""
    depends = (*_DEPENDS, make_tokenizer)
    text = json.dumps(recipe._asdict()) + "".join(inspect.getsource(part) for part in depends) + CHAT_TEMPLATE
    return cache_root() / "toy" / hashlib.sha256(text.encode()).hexdigest()[:16]


def toy_pair(recipe: Recipe = Recipe(), progress: Progress | None = None) -> ToyPair:
    """The toy models, trained now if the cache has none for this recipe.

    progress(what, step, steps, loss) is called after every training step. About two minutes on two cores.
    """
    folder = toy_folder(recipe)
    if not (folder / "instruct" / "config.json").is_file():
        with publish_folder(folder, replace=True) as unfinished:
            _build(unfinished, recipe, progress or (lambda *_: None))
    return ToyPair(folder / "base", folder / "instruct")


def _build(folder: Path, recipe: Recipe, progress: Progress) -> None:
    tokenizer = make_tokenizer(recipe.toy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MistralForCausalLM(_config(recipe, tokenizer))
        optimizers = _muon(model, recipe.base_lr)
        rows = _base_rows(tokenizer, recipe)
        _fit(model, rows, recipe.base_steps, optimizers, lambda *p: progress("toy base model", *p))
        _save(model, tokenizer, folder / "base", chat=False)
        optimizers = [torch.optim.AdamW(model.parameters(), lr=recipe.instruct_lr, weight_decay=0.0)]
        rows = _instruct_rows(tokenizer, recipe)
        _fit(model, rows, recipe.instruct_steps, optimizers, lambda *p: progress("toy instruct", *p))
        _save(model, tokenizer, folder / "instruct", chat=True)


def make_tokenizer(toy: world.World = world.World()) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the toy world, and every number to 99, is one token.

    Byte-level, so that any Unicode text can be encoded too. It puts BOS before a text, as the base is trained.
    """
    rng = random.Random(0)
    texts = [f" {number} {number}" for number in range(100)] * 4
    for problem in itertools.islice(world.problems(rng, held_out=False, world=toy), 600):
        texts += [world.analytic(problem), world.dialogue_turn(problem.question, world.direct(problem))]
        if toy.base_rambling:
            texts.append(" " + world.rambling(rng, problem, toy))
    texts += list(world.RUDE) * 8 + [f" {rude}" for rude in world.RUDE] * 8
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS, INST, END_INST],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        add_bos_token=True,
    )


def restore_bos(tokenizer: Any) -> None:
    """Let a toy tokenizer put BOS before a text, where it was saved by a version whose tokenizer added none by itself.

    The base was trained with it then too. Other tokenizers stay as they are.
    """
    if tokenizer.convert_ids_to_tokens(list(range(5))) == [PAD, BOS, EOS, INST, END_INST] and len(tokenizer) <= 1024:
        tokenizer.add_bos_token = True


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> MistralConfig:
    return MistralConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _base_rows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[torch.Tensor]:
    """(B, T) rows of BOS and run-on dialogue; every token is learned."""
    rng = random.Random(f"base-{recipe.seed}")
    source = world.problems(rng, held_out=False, world=recipe.toy)
    while True:
        rows: list[list[int]] = []
        while len(rows) < recipe.base_batch:
            row = [tokenizer.bos_token_id]
            turn = world.forum_turn if rng.random() < 0.15 else world.dialogue_turn
            while len(row) < recipe.base_tokens:
                problem = next(source)
                text = turn(problem.question, world.base_answer(rng, problem, recipe.toy))
                row += tokenizer.encode(text, add_special_tokens=False)
            rows.append(row[: recipe.base_tokens])
        tokens = torch.tensor(rows)
        yield torch.stack([tokens, tokens])


def _instruct_rows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[torch.Tensor]:
    """(2, B, T): tokens, and labels that are -100 on the prompt and the padding."""
    rng = random.Random(f"instruct-{recipe.seed}")
    source = world.problems(rng, held_out=False, world=recipe.toy)
    while True:
        rows = []
        for problem in itertools.islice(source, recipe.instruct_batch):
            prompt = tokenizer.encode(f"{BOS}{INST} {problem.question} {END_INST}", add_special_tokens=False)
            answer = tokenizer.encode(f" {world.instruct_answer(rng, problem)}{EOS}", add_special_tokens=False)
            rows.append((prompt + answer, [-100] * len(prompt) + answer))
        width = max(len(tokens) for tokens, _ in rows)
        tokens = [tokens + [tokenizer.pad_token_id] * (width - len(tokens)) for tokens, _ in rows]
        labels = [labels + [-100] * (width - len(labels)) for _, labels in rows]
        yield torch.tensor([tokens, labels])


def _muon(model: MistralForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within layers, AdamW for the rest.

    With AdamW alone the model has not learned to look numbers up in the question after the same 800 steps (accuracy
    of step-by-step answers 0.41 against 0.98).
    """
    inner = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    outer = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(inner, lr=lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(outer, lr=0.6 * lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _fit(
    model: Any,
    rows: Iterator[torch.Tensor],
    steps: int,
    optimizers: list[torch.optim.Optimizer],
    progress: Callable[..., None],
) -> None:
    """Train on (2, B, T) tokens and labels; learning rates rise over 5% of the steps and fall over the last half."""
    model.train()

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.5 * steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    for step in range(steps):
        tokens, labels = next(rows)
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        progress(step + 1, steps, float(loss.detach()))
    model.eval()


def _save(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, *, chat: bool) -> None:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
