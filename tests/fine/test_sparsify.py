"""Treatments: magnitude, DARE and TIES, the norm cap and stochastic rounding, against NumPy and by hand."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.fine import stochastic, stream
from lite_c2f.fine.merge import merge
from lite_c2f.fine.sparsify import Chunk, Treatment, dare
from lite_c2f.fine.threshold import magnitude_threshold

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
STEM = WEIGHT.removesuffix(".weight")


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def whole(function):
    """`Parts` of a weight in one piece."""
    return [function(slice(0, 10**9))]


def in_rows(rows, step):
    """`Parts` of a weight of so many rows, `step` at a time."""
    return lambda function: [function(slice(start, min(start + step, rows))) for start in range(0, rows, step)]


@pytest.fixture
def tiny(tmp_path, hand_adapter, hand_model, pico):
    """W_instruct and W_base given by hand; A is the identity and alpha / r is 1, so dW is B."""

    def build(instruct, base, delta, dtype=torch.float32):
        folders = {}
        for name, weight in (("instruct", instruct), ("base", base)):
            folders[name] = hand_model(tmp_path / name, {WEIGHT: torch.tensor(weight, dtype=dtype)})
            (folders[name] / "tokenizer.json").write_text((pico["base"] / "tokenizer.json").read_text())
        rank = len(delta[0])
        factors = {f"{STEM}.lora_A.weight": torch.eye(rank), f"{STEM}.lora_B.weight": torch.tensor(delta)}
        adapter = hand_adapter(tmp_path / "adapter", factors, r=rank, lora_alpha=rank)
        return adapter, folders["base"], folders["instruct"]

    return build


# -- magnitude


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_threshold_is_the_kth_largest(density):
    delta = torch.randn(37, 50, generator=torch.Generator().manual_seed(0)) * 1e-4
    wanted = max(1, round(density * delta.numel()))
    expected = np.sort(np.abs(delta.numpy()).ravel())[-wanted]
    for parts in (whole, in_rows(37, 5), in_rows(37, 1)):
        assert magnitude_threshold(parts, lambda rows: delta[rows].clone(), 1850, density) == expected


def test_threshold_with_many_equal_values():
    delta = torch.tensor([[0.0, 0.0, 0.0, 2.0], [2.0, -2.0, 1.0, -3.0]])
    for wanted, expected in ((1, 3.0), (2, 2.0), (4, 2.0), (5, 1.0), (6, 0.0)):
        assert magnitude_threshold(whole, lambda rows: delta[rows].clone(), 8, wanted / 8) == expected


def test_magnitude_by_hand(tmp_path, tiny):
    adapter, base, instruct = tiny([[10.0, 10.0], [10.0, 10.0]], [[1.0, 1], [1, 1]], [[0.1, -0.4], [0.2, 0.3]])
    report = merge(adapter, base, instruct, tmp_path / "o", treatment=Treatment(sparsify="magnitude", density=0.5))
    torch.testing.assert_close(weights_of(tmp_path / "o")[WEIGHT], torch.tensor([[10.0, 9.6], [10.0, 10.3]]))
    assert report.tensors[WEIGHT]["kept_share"] == 0.5
    assert report.treatment["sparsify"] == "magnitude" and report.treatment["density"] == 0.5


# -- TIES


def test_ties_by_hand(tmp_path, tiny):
    """Task vector W_instruct - W_base = [[+1, -1], [+0.1, 0]], dW = [[+.5, +.5], [-.5, -.5]], density 1.

    ratio * dW + task: 1.5 (+), -0.5 (-, dW is +: dropped), -0.4 (-, kept), -0.5 (-, kept).
    """
    adapter, base, instruct = tiny([[3.0, 1.0], [2.1, 2.0]], [[2.0, 2.0], [2.0, 2.0]], [[0.5, 0.5], [-0.5, -0.5]])
    merge(adapter, base, instruct, tmp_path / "o", treatment=Treatment(sparsify="ties", density=1.0))
    torch.testing.assert_close(weights_of(tmp_path / "o")[WEIGHT], torch.tensor([[3.5, 1.0], [1.6, 1.5]]))
    # at ratio 0.1 the third loses to the task vector: -0.05 + 0.1 > 0, and dW is negative
    merge(adapter, base, instruct, tmp_path / "p", 0.1, treatment=Treatment(sparsify="ties", density=1.0))
    torch.testing.assert_close(weights_of(tmp_path / "p")[WEIGHT], torch.tensor([[3.05, 1.0], [2.1, 1.95]]))


def test_ties_with_a_negative_ratio_by_hand(tmp_path, tiny):
    """Task vector [[+1, -1], [0, 0]], dW = [[.5, .5], [.5, .5]], ratio -1: change -.5; sums .5 (+), -1.5, -.5, -.5."""
    adapter, base, instruct = tiny([[3.0, 1.0], [2.0, 2.0]], [[2.0, 2.0], [2.0, 2.0]], [[0.5, 0.5], [0.5, 0.5]])
    settings = Treatment(sparsify="ties", density=1.0)
    merge(adapter, base, instruct, tmp_path / "o", -1.0, allow_negative=True, treatment=settings)
    torch.testing.assert_close(weights_of(tmp_path / "o")[WEIGHT], torch.tensor([[3.0, 0.5], [1.5, 1.5]]))


# -- DARE


def drop_at_random(delta, bits, density):
    return dare(Chunk(delta, density, 1.0, None, lambda: bits, lambda: None))


def test_random_bits_do_not_depend_on_what_is_drawn_beside_them():
    everything = stochastic.random_bits(7, "a.weight", "dare", 0, 1000)
    for start, count in ((0, 1), (1, 15), (16, 16), (17, 100), (999, 1), (333, 667)):
        assert torch.equal(
            stochastic.random_bits(7, "a.weight", "dare", start, count), everything[start : start + count]
        )
    for other in ((8, "a.weight", "dare"), (7, "b.weight", "dare"), (7, "a.weight", "rounding")):
        assert (stochastic.random_bits(*other, 0, 1000) == everything).float().mean() < 0.01
    many = stochastic.random_bits(0, "x", "dare", 0, 2**18)
    assert int(many.min()) >= 0 and int(many.max()) < 2**16
    # uniform: mean 32767.5, standard error 18918 / 512 = 37; each of 16 bits half of the time (standard error 0.001)
    assert abs(float(many.float().mean()) - 32767.5) < 5 * 37
    assert all(abs(float(((many >> bit) & 1).float().mean()) - 0.5) < 0.005 for bit in range(16))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_a_share_and_the_mean(density):
    delta = torch.full((512, 512), 2.0)
    found = drop_at_random(delta, stochastic.random_bits(0, "w", "dare", 0, 2**18), density)
    share = round(density * 2**16) / 2**16  # of the 16-bit numbers, not quite the density
    assert set(found.unique().tolist()) == {0.0, np.float32(2.0 / share).item()}
    # binomial: standard error sqrt(p (1 - p) / 2**18) <= 0.001
    assert abs(float((found != 0).float().mean()) - density) < 0.005
    assert abs(float(found.mean()) - 2.0) < 0.05


@pytest.mark.parametrize("sparsify", ["dare", "magnitude", "ties"])
def test_shards_chunks_and_threads_change_nothing(tmp_path, pico, monkeypatch, sparsify):
    """The same elements are kept whatever the chunk; bfloat16 in many shards keeps those that one file keeps."""
    settings = Treatment(sparsify=sparsify, density=0.4, seed=3, rounding="stochastic")
    adapter, base = pico["adapter"], pico["base"]
    merge(adapter, base, pico["sharded"], tmp_path / "a", treatment=settings)
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(stream, "MAX_WORKERS", 1)
    merge(adapter, base, pico["sharded"], tmp_path / "b", treatment=settings)
    first, second = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    merge(adapter, base, pico["sharded"], tmp_path / "c", treatment=settings._replace(seed=4))
    assert any(not torch.equal(first[name], tensor) for name, tensor in weights_of(tmp_path / "c").items())


def test_dare_is_right_on_average_at_small_densities():
    """Of 65,536 numbers at least one is kept, and what is kept is divided by the share that it is."""
    ones = torch.ones(2**16)
    for density in (1e-6, 1e-4, 0.3):
        every = torch.arange(2**16, dtype=torch.int32)
        assert float(drop_at_random(ones.clone(), every, density).mean()) == pytest.approx(1.0, rel=1e-6)


def test_bits_of_two_purposes_differ(tmp_path, tiny, monkeypatch):
    """What DARE keeps must not decide how it is rounded."""
    purposes = []
    bits = stochastic.random_bits

    def record(seed, name, purpose, start, count):
        purposes.append(purpose)
        return bits(seed, name, purpose, start, count)

    monkeypatch.setattr(stochastic, "random_bits", record)
    folders = tiny(np.ones((4, 4)), np.zeros((4, 4)), np.ones((4, 4)).tolist(), torch.bfloat16)
    merge(*folders, tmp_path / "o", treatment=Treatment(sparsify="dare", density=0.5, rounding="stochastic"))
    assert purposes == ["dare", "rounding"]


# -- rounding


def test_stochastic_rounding_by_hand():
    """Between 1 and 1 + 2**-7 lies 1 + 2**-9, a quarter of the way: up for the top quarter of the bits, else down."""
    quarter = torch.full((4,), 1 + 2.0**-9)
    bits = torch.tensor([0, 2**16 - 2**14 - 1, 2**16 - 2**14, 2**16 - 1], dtype=torch.int32)
    assert stochastic.round_stochastically(quarter, bits).tolist() == [1.0, 1.0, 1 + 2.0**-7, 1 + 2.0**-7]
    assert stochastic.round_stochastically(-quarter, bits).tolist() == [-1.0, -1.0, -1 - 2.0**-7, -1 - 2.0**-7]
    exact = torch.tensor([0.0, 1.0, -3.0, 256.0])
    assert torch.equal(
        stochastic.round_stochastically(exact, torch.full((4,), 2**16 - 1, dtype=torch.int32)).float(), exact
    )


def test_stochastic_rounding_carries_what_nearest_loses(tmp_path, tiny):
    """bfloat16 steps by 2 from 256 up: 0.25 more is always lost to nearest, and kept on average by chance."""
    size = 128
    adapter, base, instruct = tiny(
        np.full((size, size), 256.0), np.full((size, size), 255.0), np.full((size, size), 0.25).tolist(), torch.bfloat16
    )
    with pytest.raises(ModelError, match="all equal to the instruct"):
        merge(adapter, base, instruct, tmp_path / "nearest")
    report = merge(adapter, base, instruct, tmp_path / "chance", treatment=Treatment(rounding="stochastic"))
    merged = weights_of(tmp_path / "chance")[WEIGHT].float()
    assert set(merged.unique().tolist()) == {256.0, 258.0}
    # 0.25 / 2 of 16,384 elements go up: standard error of the mean change 2 * sqrt(.125 * .875 / 16384) = 0.005
    assert abs(float(merged.mean()) - 256.25) < 0.025
    assert report.totals["projection"] == pytest.approx(1.0, abs=0.1)


# -- norm cap


def test_norm_cap_by_hand(tmp_path, tiny):
    """|W| = 10, |dW| = 5: a cap of 0.1 leaves a fifth of it, one of 0.6 all."""
    adapter, base, instruct = tiny([[6.0, 0.0], [0.0, 8.0]], [[0.0, 0], [0, 0]], [[3.0, 0.0], [0.0, 4.0]])
    report = merge(adapter, base, instruct, tmp_path / "o", treatment=Treatment(norm_cap=0.1))
    torch.testing.assert_close(weights_of(tmp_path / "o")[WEIGHT], torch.tensor([[6.6, 0.0], [0.0, 8.8]]))
    assert report.tensors[WEIGHT]["cap"] == pytest.approx(0.2)
    assert report.tensors[WEIGHT]["relative_change"] == pytest.approx(0.1)
    report = merge(adapter, base, instruct, tmp_path / "p", treatment=Treatment(norm_cap=0.6))
    assert report.tensors[WEIGHT]["cap"] == 1.0
    assert weights_of(tmp_path / "p")[WEIGHT].tolist() == [[9.0, 0.0], [0.0, 12.0]]


# -- settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sparsify": "prune"}, "sparsify"),
        ({"sparsify": "dare"}, "density"),
        ({"density": 0.5}, "density"),
        ({"sparsify": "dare", "density": 0.0}, "density"),
        ({"sparsify": "dare", "density": 1.5}, "density"),
        ({"sparsify": "dare", "density": math.nan}, "density"),
        ({"sparsify": "dare", "density": True}, "density"),
        ({"seed": -1}, "seed"),
        ({"norm_cap": 0}, "norm_cap"),
        ({"norm_cap": math.inf}, "norm_cap"),
        ({"rounding": "up"}, "rounding"),
        ({"rounding": "stochastic"}, "rounding"),  # of float32
    ],
)
def test_refused_settings_are_named(tmp_path, tiny, settings, named):
    folders = tiny([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]])
    with pytest.raises((ConfigError, ModelError), match=f"'{named}'"):
        merge(*folders, tmp_path / "o", treatment=Treatment(**settings))
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob(".o*"))
