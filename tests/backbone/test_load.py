"""What a run computes on and in: the loader and the planner take it from one place, on every machine."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from lite_c2f.backbone.machine import card_gib, pick_device, pick_dtype, plan_here, plan_named, uses_checkpointing
from lite_c2f.config.loading import load_config
from lite_c2f.errors import ConfigError
from lite_c2f.memory import make_plan


@pytest.fixture
def machine(monkeypatch):
    """A machine with a card of so many GiB, or none. native: whether it has bfloat16, the card or else the CPU.

    A card without bfloat16 emulates it, as Turing and Volta do.
    """

    def build(card, native=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        properties = SimpleNamespace(total_memory=(card or 0) * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
        )

        monkeypatch.setattr("lite_c2f.backbone.machine.may_have_gpu", lambda: card is not None)

    return build


SEVEN_B = ["model.base=mistralai/Mistral-7B-v0.1", "model.instruct=mistralai/Mistral-7B-Instruct-v0.1"]
EXPECTED = {  # (setting, on a GPU, with bfloat16 in hardware) -> arithmetic
    ("auto", True, True): torch.bfloat16,
    ("auto", True, False): torch.float32,
    ("auto", False, True): torch.float32,
    ("auto", False, False): torch.float32,
    ("native", True, True): torch.bfloat16,
    ("native", True, False): torch.float32,
    ("native", False, True): torch.bfloat16,
    ("native", False, False): torch.float32,
}


@pytest.mark.parametrize("card", [None, 24, 80])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("base", ["toy", "seven"])
def test_plan_and_loader_agree(machine, card, native, base):
    """In device, type and checkpointing, for every setting; 24 GiB that no card here has change nothing."""
    machine(card, native)
    devices, dtypes = ("auto", "cpu", "cuda"), ("auto", "native", "bfloat16", "float16", "float32")
    checked = 0
    for device, dtype, again, vram in itertools.product(devices, dtypes, ("auto", "true", "false"), ("null", "24")):
        settings = [
            f"hardware.device={device}",
            f"model.compute_dtype={dtype}",
            f"hardware.gradient_checkpointing={again}",
            f"hardware.vram_gib={vram}",
        ]
        config = load_config({}, settings + (SEVEN_B if base == "seven" else []))
        on_gpu = card is not None and device != "cpu"
        if (device == "cuda" and card is None) or (dtype == "float16" and not on_gpu):
            with pytest.raises(ConfigError, match=r"hardware\.device=cuda|model\.compute_dtype=float16 on a CPU"):
                plan_here(config)
            with pytest.raises(ConfigError, match=r"hardware\.device=cuda|model\.compute_dtype=float16 on a CPU"):
                pick_dtype(config, pick_device(config))
            continue
        plan, where = plan_here(config), pick_device(config)
        assert plan.compute.on_gpu == (where.type == "cuda") == on_gpu
        expected = EXPECTED.get((dtype, on_gpu, native)) or getattr(torch, dtype)
        assert getattr(torch, plan.compute.dtype) == pick_dtype(config, where) == expected
        checkpointing = on_gpu if again == "auto" else again == "true"
        assert plan.compute.checkpointing == uses_checkpointing(config, where) == checkpointing
        assert plan.vram_gib == card_gib(config) == (min(card, 24 if vram == "24" else card) if on_gpu else None)
        checked += 1
    assert checked == (48 if card is None else 84)


def test_a_card_that_emulates_bfloat16_is_told_about(machine):
    """Keys and values of float32 take twice the room: 256 KiB per token instead of 128."""
    machine(24, native=False)
    config = load_config({}, [*SEVEN_B, "coarse.sampling_batch=1", "coarse.length.max=744"])
    plan = plan_here(config)
    sampling = next(need for need in plan.needs if need.stage == "coarse_sampling")
    assert sampling.parts["KV cache"] == 1000 * 256 * 1024
    assert any("model.compute_dtype=float16" in warning for warning in plan.warnings)
    machine(24)
    assert plan_here(config).warnings == []


def test_a_named_card_that_is_not_here_is_planned_for_and_told_about(machine):
    machine(None)
    config = load_config({}, [*SEVEN_B, "hardware.vram_gib=24"])
    named, here = plan_named(config), plan_here(config)
    assert named.vram_gib == 24 and named.compute == make_plan(config, 24).compute and named.compute.on_gpu
    assert here.vram_gib is None and not here.compute.on_gpu
    for plan in (named, here):
        assert "hardware.vram_gib=24, but no GPU is found here" in plan.warnings[-1]
    assert plan_named(load_config({}, ["hardware.vram_gib=24", "hardware.device=cpu"])).warnings == []


def test_a_gpu_is_looked_for_where_there_is_a_file_of_its_driver(monkeypatch, tmp_path):
    from lite_c2f.backbone import machine as module

    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module, "GPU_FILES", (str(tmp_path / "nvidia0"), str(tmp_path / "kfd")))
    assert not module.may_have_gpu()
    (tmp_path / "kfd").touch()
    assert module.may_have_gpu()
    (tmp_path / "kfd").unlink()
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert module.may_have_gpu()


def test_a_named_card_that_is_here_is_planned_for(machine):
    machine(80)
    plan = plan_named(load_config({}, [*SEVEN_B, "hardware.vram_gib=24"]))
    assert plan.vram_gib == 24 and plan.compute.on_gpu and plan.warnings == []


@pytest.mark.parametrize(("kind", "words"), [("xpu", "no Intel GPU"), ("mps", "no Apple GPU"), ("cuda", "no CUDA GPU")])
def test_a_device_that_torch_does_not_find_is_refused(machine, monkeypatch, kind, words):
    machine(None)
    monkeypatch.setattr(torch.get_device_module(kind), "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        pick_device(load_config({}, [f"hardware.device={kind}"]))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_apple_gpu_is_planned_for_and_called_untried(machine, monkeypatch):
    """Of 18 GiB that Metal recommends; float32, because torch says nothing of its bfloat16. `auto` never takes it."""
    machine(None)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 18 * 2**30)
    config = load_config({}, [*SEVEN_B, "hardware.device=mps"])
    plan = plan_here(config)
    assert pick_device(config) == torch.device("mps") and card_gib(config) == plan.vram_gib == 18
    assert plan.compute == (True, "float32", True)  # on a GPU, type, checkpointing
    assert [warning for warning in plan.warnings if "hardware.device=mps: untried" in warning] == plan.warnings[-1:]
    assert pick_dtype(load_config({}, ["hardware.device=mps", "model.compute_dtype=bfloat16"]), torch.device("mps"))
    assert pick_device(load_config({})) == torch.device("cpu")


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_an_intel_gpu_is_planned_for_and_called_untried(machine, monkeypatch, native, dtype):
    machine(None)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    properties = SimpleNamespace(total_memory=12 * 2**30, has_bfloat16_conversions=native)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device=None: properties)
    config = load_config({}, ["hardware.device=xpu"])
    plan = plan_here(config)
    assert plan.vram_gib == card_gib(config) == 12 and plan.compute.dtype == dtype and plan.compute.on_gpu
    assert "hardware.device=xpu: untried" in plan.warnings[-1]
