"""Sampling against `generate` as the oracle, endings by hand, frequencies against the softmax."""

import contextlib
import math
from collections import Counter
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lite_c2f.backbone.roles import Roles
from lite_c2f.config.settings import Lora
from lite_c2f.errors import ConfigError, MemoryFullError, ModelError
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling, Stops, draw, filter_logits, sample, schedule
from lite_c2f.sampling.slots import Graphs, ResponseBuffer, SlotJob, Slots

PROMPTS = [[1, 5, 9], [1, 7], [1, 20, 21, 22, 23, 24], [1, 3]]


@pytest.fixture(scope="module")
def model(pico):
    return AutoModelForCausalLM.from_pretrained(pico["base"], dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(pico):
    return AutoTokenizer.from_pretrained(pico["base"])


def answer(model, sampling, prompts=PROMPTS, **options):
    return sample(model, prompts, sampling, **{"eos_ids": [2], "pad_id": 0, **options})


def oracle(model, prompt, limit, eos=2):
    tokens = torch.tensor([prompt])
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def test_greedy_is_generate_for_prompts_of_mixed_lengths(model):
    result = answer(model, Sampling(12, temperature=0))
    assert result.tokens == [oracle(model, prompt, 12) for prompt in PROMPTS]


def test_greedy_is_generate_when_rows_end_at_different_steps(model):
    """Tokens that some rows say early are made EOS, so that rows leave the batch one after another."""
    generated = [oracle(model, prompt, 12) for prompt in PROMPTS]
    eos = generated[0][3]
    result = answer(model, Sampling(12, temperature=0), eos_ids=[eos])
    assert result.tokens == [oracle(model, prompt, 12, eos) for prompt in PROMPTS]
    lengths = {len(tokens) for tokens in result.tokens}
    assert len(lengths) > 1 and min(lengths) < 12
    for tokens, finish, ending in zip(result.tokens, result.finish, result.ending, strict=True):
        assert (finish, ending) == (("eos", 1) if tokens[-1] == eos else ("limit", 0))


def test_a_stop_text_ends_the_response_and_is_cut_from_it(model, tokenizer):
    free = answer(model, Sampling(12, temperature=0), [PROMPTS[0]]).tokens[0]
    words = [f" {word}" for word in tokenizer.convert_ids_to_tokens(free)]
    stop = "".join(words[4:6])
    result = answer(model, Sampling(12, temperature=0), [PROMPTS[0]], stops=Stops(tokenizer, [stop]))
    first = next(i for i in range(2, 13) if stop in "".join(words[:i]))
    assert result.tokens[0] == free[:first] and result.finish == ["stop"] and result.ending == [2]
    assert result.text_tokens(0) == free[: first - 2]


def test_logprobs_are_those_of_the_model(model):
    result = answer(model, Sampling(6, temperature=0.8, seed=3))
    for prompt, tokens, logprobs in zip(PROMPTS, result.tokens, result.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.8).log_softmax(-1)[range(len(tokens)), tokens]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=2e-5, rtol=0)


def test_a_row_does_not_depend_on_its_neighbours(model):
    together = answer(model, Sampling(10, seed=5))
    again = answer(model, Sampling(10, seed=5))
    other = answer(model, Sampling(10, seed=6))
    assert together.tokens == again.tokens and together.tokens != other.tokens
    replaced = answer(model, Sampling(10, seed=5), [PROMPTS[0], [1, 60], [1, 61], PROMPTS[3]])
    assert replaced.tokens[0] == together.tokens[0] and replaced.tokens[3] == together.tokens[3]
    assert answer(model, Sampling(10, seed=5), batch=2).tokens == together.tokens


@pytest.fixture
def roles(quantized):
    return adapted(quantized)


def adapted(quantized):
    """NF4 with a LoRA that changes what is said."""
    torch.manual_seed(3)
    made = Roles(quantized(), Lora(r=4, alpha=8), ("policy",))
    with torch.no_grad():
        for parameter in made.adapter_parameters("policy"):
            parameter.normal_(std=0.2)
    return made


@pytest.fixture(scope="module")
def by_generate(quantized):
    """17 prompts of 2 to 15 tokens, two tokens that many rows say early, and what `generate` says up to those."""
    roles, prompts = adapted(quantized), mixed_prompts(17)
    with roles.use("policy"):
        free = [oracle(roles.model, prompt, 24, None) for prompt in prompts]
        counted = Counter(token for generated in free for token in set(generated[2:])).most_common(2)
        eos = [token for token, _ in counted]
        return prompts, eos, [oracle(roles.model, prompt, 24, eos) for prompt in prompts]


def mixed_prompts(count):
    numbers = torch.Generator().manual_seed(4)
    sizes = torch.randint(1, 15, (count,), generator=numbers).tolist()
    return [[1, *torch.randint(3, 60, (size,), generator=numbers).tolist()] for size in sizes]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("batch", [1, 3, 5, 64])
def test_greedy_is_generate_on_nf4_and_lora_with_refill(roles, by_generate, batch, steps, monkeypatch):
    """Responses of 1 to 24 tokens, in fewer slots than prompts."""
    monkeypatch.setattr(schedule, "steps_per_snapshot", lambda device: steps)
    prompts, eos, expected = by_generate
    ticks = []
    with roles.sampling("policy"):
        result = answer(
            roles.model, Sampling(24, temperature=0), prompts, eos_ids=eos, batch=batch, on_tokens=ticks.append
        )
    assert result.tokens == expected
    lengths = [len(tokens) for tokens in expected]
    assert len(set(lengths)) > 4 and min(lengths) < 6 and max(lengths) == 24
    assert sum(ticks) == sum(lengths)


def test_slots_are_filled_again_longest_expected_first(roles, monkeypatch):
    started, sizes = [], []
    original = Slots.start

    def start(self, slots, rows):
        started.append([self.buffer.rows[row] for row in rows])
        sizes.append(self.size)
        return original(self, slots, rows)

    monkeypatch.setattr(Slots, "start", start)
    prompts = mixed_prompts(8)
    limits = [3, 9, 2, 7, 4, 1, 8, 5]
    with roles.sampling("policy"):
        options = {"batch": 4, "limits": limits, "eos_ids": []}
        plain = answer(roles.model, Sampling(9, seed=2), prompts, **options)
        assert started[0] == [0, 1, 2, 3] and [row for group in started for row in group] == list(range(8))
        started.clear()
        first = answer(roles.model, Sampling(9, seed=2), prompts, expected=limits, **options)
    assert started[0] == [1, 6, 3, 7] and [row for group in started for row in group] == [1, 6, 3, 7, 4, 0, 2, 5]
    assert len(started) > 2 and set(sizes) == {4}
    assert [len(tokens) for tokens in plain.tokens] == limits and set(plain.finish) == {"limit"}
    assert first.tokens == plain.tokens  # whose turn it is changes nothing of what is said


def test_slots_are_given_up_when_nobody_waits_for_them(roles, monkeypatch):
    sizes = []
    original = Slots.advance

    def advance(self, steps, deepest):
        sizes.append(self.size)
        return original(self, steps, deepest)

    monkeypatch.setattr(Slots, "advance", advance)
    with roles.sampling("policy"):
        result = answer(roles.model, Sampling(12), mixed_prompts(4), limits=[2, 12, 4, 12], eos_ids=[], batch=4)
    # first tokens come from the prompts; with 3 of 4 left the idle one goes, with 2 of 3 another
    assert sizes == [4] + [3] * 2 + [2] * 8 and [len(tokens) for tokens in result.tokens] == [2, 12, 4, 12]


def test_out_of_memory_while_sampling_gives_the_same_words_in_fewer_slots(roles, monkeypatch):
    prompts, sampling = mixed_prompts(9), Sampling(10, seed=8)
    with roles.sampling("policy"):
        expected = answer(roles.model, sampling, prompts, batch=8)
    original, served = Slots._forward, []
    starting, started = Slots.start, []

    def start(self, slots, rows):
        started.append([self.buffer.rows[row] for row in rows])
        return starting(self, slots, rows)

    monkeypatch.setattr(Slots, "start", start)

    def forward(self, tokens, mask, positions):
        served.append(self.size)
        if self.size > 3 and len(served) > 6:  # some rows are finished by then: they are not said again
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return original(self, tokens, mask, positions)

    monkeypatch.setattr(Slots, "_forward", forward)
    messages = []
    batch = BatchSize("coarse.sampling_batch", 8, messages.append)
    limits = [10, 2, 10, 10, 2, 10, 10, 10, 10]
    with roles.sampling("policy"):
        result = answer(roles.model, sampling, prompts, batch=batch, limits=limits)
    assert batch.size == 2 and len(messages) == 2
    assert {1, 4} <= {*started[0]} and all(row not in group for group in started[1:] for row in (1, 4))
    for row, limit in enumerate(limits):
        assert result.tokens[row] == expected.tokens[row][:limit]
    monkeypatch.setattr(Slots, "_forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(MemoryFullError, match=r"coarse\.sampling_batch=1"), roles.sampling("policy"):
        answer(roles.model, sampling, prompts, batch=batch)


def test_sampled_frequencies_match_the_softmax_of_the_model(roles):
    """6,000 responses to one prompt through the slots: first and second tokens against the model's own softmax."""
    prompt, count = [1, 5, 9], 6000
    with roles.sampling("policy"):
        generated = answer(roles.model, Sampling(2, temperature=0.6, seed=1), [prompt] * count, eos_ids=[], batch=2000)
        with torch.no_grad():
            logits = roles.model(torch.tensor([prompt])).logits[0, -1]
    firsts = torch.bincount(torch.tensor([tokens[0] for tokens in generated.tokens]), minlength=64) / count
    expected = (logits / 0.6).softmax(-1)
    standard_error = (expected * (1 - expected) / count).sqrt()
    assert ((firsts - expected).abs() / standard_error.clamp(min=1e-4)).max() < 4.5  # 64 words at once
    likely = int(expected.argmax())
    with torch.no_grad(), roles.sampling("policy"):
        logits = roles.model(torch.tensor([[*prompt, likely]])).logits[0, -1]
    after = [tokens[1] for tokens in generated.tokens if tokens[0] == likely]
    share = (logits / 0.6).softmax(-1)
    result = torch.bincount(torch.tensor(after), minlength=64) / len(after)
    assert ((result - share).abs() / (share * (1 - share) / len(after)).sqrt()).max() < 4.5
    assert math.isclose(sum(Counter(after).values()), len(after)) and len(after) > 100


def test_sliding_windows_are_kept(pico):
    model = AutoModelForCausalLM.from_pretrained(pico["base"], dtype=torch.float32).eval()
    model.config.sliding_window = 6
    result = answer(model, Sampling(14, temperature=0), eos_ids=[])
    assert result.tokens == [oracle(model, prompt, 14, None) for prompt in PROMPTS]
    model.config.sliding_window = None
    assert result.tokens != answer(model, Sampling(14, temperature=0), eos_ids=[]).tokens


def test_frequencies_match_the_softmax():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    drawn, logprobs = draw(logits.expand(40_000, 4), uniforms, Sampling(1, temperature=0.5))
    expected = (logits[0] / 0.5).softmax(-1)
    result = torch.bincount(drawn, minlength=4) / 40_000
    assert (result - expected).abs().max() < 3 * (0.25 / 40_000) ** 0.5  # three standard errors at most
    torch.testing.assert_close(logprobs.exp(), expected[drawn], atol=1e-6, rtol=0)


def test_draw_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for uniform in (0.0, 0.4999, 0.5, 0.99999994):
        drawn, _ = draw(logits, torch.tensor([uniform]), Sampling(1))
        assert drawn.item() == (1 if uniform < 0.5 else 2)


def test_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert torch.isfinite(filter_logits(logits, 2, 1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.79)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.81)).tolist() == [[True, True, True, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.0)).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("sampling", "prompts", "words"),
    [
        (Sampling(0), PROMPTS, "limit 0"),
        (Sampling(-3), PROMPTS, "limit -3"),
        (Sampling(10), [[]], "empty prompt"),
        (Sampling(10, temperature=-1.0), PROMPTS, "temperature -1.0"),
        (Sampling(10, temperature=float("nan")), PROMPTS, "temperature nan"),
        (Sampling(10, temperature=1e-30), PROMPTS, "temperature 1e-30"),
        (Sampling(10, top_k=-1), PROMPTS, "top_k -1"),
        (Sampling(10, top_p=1.5), PROMPTS, "top_p 1.5"),
        (Sampling(10), [[1, 2], [1] * 60], "row 1: prompt of 60 .* context of 64"),
    ],
)
def test_bad_requests(model, sampling, prompts, words):
    with pytest.raises(ConfigError, match=words):
        answer(model, sampling, prompts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch of 0"),
        ({"limits": [3, 0, 3, 3]}, "limit 0"),
        ({"limits": [3]}, "1 limits for 4 prompts"),
        ({"expected": [3, 4]}, "2 expected lengths for 4 prompts"),
    ],
)
def test_more_bad_requests(model, options, words):
    with pytest.raises(ConfigError, match=words):
        answer(model, Sampling(4), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_name_row_and_step(model, value):
    calls = []

    def breaks(module, options, logits):
        calls.append(1)
        if len(calls) == 3:
            logits[1] = value
        return logits

    handle = model.lm_head.register_forward_hook(breaks)
    try:
        with pytest.raises(ModelError, match="row 1 at step 2"):
            answer(model, Sampling(10))
    finally:
        handle.remove()


def test_nothing_to_answer(model):
    assert answer(model, Sampling(4), []) == ([], [], [], [], [])


def test_a_model_in_training_mode_is_refused(model):
    model.train()
    try:
        with pytest.raises(ModelError, match="training mode"):
            answer(model, Sampling(4))
    finally:
        model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "eager"])
def test_other_models_of_the_same_form(kind):
    """Biases, tied embeddings, another head_dim, eager attention, a window that is configured but not used."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    torch.manual_seed(0)
    if kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=True, tie_word_embeddings=True, head_dim=16))
    elif kind == "qwen2":
        made = Qwen2ForCausalLM(Qwen2Config(**shape, use_sliding_window=True, sliding_window=4, max_window_layers=2))
    else:
        made = MistralForCausalLM(MistralConfig(**shape, attn_implementation="eager"))
    made.eval()
    result = answer(made, Sampling(12, temperature=0), mixed_prompts(7), eos_ids=[], batch=3)
    assert result.tokens == [oracle(made, prompt, 12, None) for prompt in mixed_prompts(7)]


@pytest.mark.parametrize(
    "change", [{"_attn_implementation": "flash_attention_2"}, {"layer_types": ["linear_attention"] * 2}]
)
def test_models_that_would_be_sampled_wrongly_are_refused(change, pico):
    model = AutoModelForCausalLM.from_pretrained(pico["base"], dtype=torch.float32).eval()
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ModelError, match="expected"):
        answer(model, Sampling(4))


class HostQuestions(TorchDispatchMode):
    """Notes operations that a GPU could not do without waiting for, or being fed by, the host."""

    def __init__(self):
        super().__init__()
        self.queries = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        indices = args[1] if name in ("aten::index", "aten::index_put_", "aten::index_put") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique"):
            self.queries.append(name)
        made = function(*args, **(kwargs or {}))
        if name in ("aten::scalar_tensor", "aten::lift_fresh", "aten::lift_fresh_copy"):
            self.queries.append(name)
        return made


@pytest.mark.parametrize("sampling", [Sampling(8, temperature=0), Sampling(8, 0.7, top_k=5, top_p=0.8)])
def test_a_step_asks_the_host_nothing(roles, sampling, tokenizer):
    """Steps may follow each other without waiting, and be recorded as a CUDA graph."""
    prompts = mixed_prompts(3)
    job = SlotJob(prompts, [8] * 3, sampling, [2], Stops(tokenizer, [" w57 w58", " w59 w60"]), 0, range(3))
    decoder, head = schedule.decoder_and_head(roles.model)
    with roles.sampling("policy"), torch.no_grad():
        slots = Slots(decoder, head, job, ResponseBuffer(job, range(3), torch.device("cpu")), 3, 32)
        slots.start([0, 1, 2], [0, 1, 2])
        deepest = slots.snapshot().deepest
        with HostQuestions() as questions:
            slots.advance(3, deepest)
    assert questions.queries == []
    assert slots.snapshot().drawn == 9


class FakeGraph:
    """Stands for the driver: what is recorded is not done until it is replayed."""

    log: ClassVar[list] = []

    def replay(self):
        self.log.append("replayed")

    def pool(self):
        return "pool"


@pytest.fixture
def driver(monkeypatch):
    """The bookkeeping around recording, with a driver that accepts, refuses, or has no memory left."""
    state = {"error": None, "recording": False}

    @contextlib.contextmanager
    def recording(graph, pool=None):
        state["recording"] = True
        try:
            yield
            if state["error"]:
                raise state["error"]
        finally:
            state["recording"] = False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: FakeGraph.log.append(f"back on {stream}"))
    monkeypatch.setattr(Graphs, "refused", False)
    monkeypatch.setattr(FakeGraph, "log", [])
    return state


def test_graphs_are_recorded_at_the_second_step_and_replayed(driver):
    graphs = Graphs()
    for key in ((4, 256), (4, 256), (4, 256), (4, 512), (4, 512)):
        graphs.run(key, lambda: FakeGraph.log.append("recorded" if driver["recording"] else "done"))
    assert FakeGraph.log == ["done", "recorded", "replayed", "replayed", "done", "recorded", "replayed"]


def test_a_driver_that_refuses_leaves_eager_steps(driver, caplog):
    graphs, driver["error"] = Graphs(), RuntimeError("operation not permitted when stream is capturing")
    for _ in range(4):
        graphs.run((4, 256), lambda: None if driver["recording"] else FakeGraph.log.append("done"))
    assert FakeGraph.log == ["done", "back on stream", "done", "done", "done"]
    assert Graphs.refused and len(caplog.records) == 1 and "without CUDA graphs" in caplog.text


def test_no_memory_to_record_is_out_of_memory(driver):
    graphs, driver["error"] = Graphs(), torch.OutOfMemoryError("full")
    graphs.run((4, 256), lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run((4, 256), lambda: None)
    assert not Graphs.refused and FakeGraph.log == ["back on stream"]


def test_rows_that_have_ended_stay_within_their_slot(roles, monkeypatch):
    """Four tokens of prompt and four of response fill a slot of eight; nobody looks for twenty steps."""
    monkeypatch.setattr(schedule, "steps_per_snapshot", lambda device: 20)
    prompts = [[1, 5, 9, 12], [1, 7, 8, 3]]
    with roles.sampling("policy"):
        result = answer(roles.model, Sampling(4, seed=1), prompts, eos_ids=[])
    monkeypatch.setattr(schedule, "steps_per_snapshot", lambda device: 1)
    with roles.sampling("policy"):
        assert answer(roles.model, Sampling(4, seed=1), prompts, eos_ids=[]) == result
