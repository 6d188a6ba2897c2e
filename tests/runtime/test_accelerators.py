"""Accelerators other than CUDA, stood in for by modules with the functions that torch's own have, and no others."""

from types import SimpleNamespace

import pytest
import torch

from lite_c2f.backbone.device import device_name, free_bytes, total_bytes
from lite_c2f.coarse.log_metrics import peak_memory_mib
from lite_c2f.pipeline.train import free_memory
from lite_c2f.runtime import accelerators
from lite_c2f.runtime.batch_size import is_out_of_memory
from lite_c2f.storage.checkpoints import generator_states, restore_generators

MPS, XPU, CPU = torch.device("mps"), torch.device("xpu"), torch.device("cpu")


def stand_in(kind):
    """A module of a kind of device with two devices (MPS: one), whose calls are counted."""
    count = 1 if kind == "mps" else 2
    states = [torch.full((4,), index + 1, dtype=torch.uint8) for index in range(count)]
    functions = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "empty_cache": lambda: calls.append("empty_cache"),
    }
    calls = []
    if kind == "mps":
        functions |= {
            "get_rng_state": lambda: states[0].clone(),
            "set_rng_state": lambda state: states.__setitem__(0, state),
            "recommended_max_memory": lambda: 1000,
            "driver_allocated_memory": lambda: 3 * 2**20,
        }
    else:
        functions |= {
            "get_rng_state_all": lambda: [state.clone() for state in states],
            "set_rng_state": lambda state, index: states.__setitem__(index, state),
            "reset_peak_memory_stats": lambda: calls.append("reset"),
            "max_memory_allocated": lambda device: 5 * 2**20,
            "mem_get_info": lambda device: (300, 1000),
            "get_device_properties": lambda device: SimpleNamespace(total_memory=1000),
            "get_device_name": lambda device: "a card",
        }
    for name in functions:
        assert hasattr(torch.get_device_module(kind), name), f"torch.{kind}.{name}"
    return SimpleNamespace(**functions, states=states, calls=calls)


@pytest.fixture
def machine(monkeypatch):
    """A machine with one kind of accelerator, on which every function of torch.cuda but is_available fails."""

    def build(kind):
        module, none = stand_in(kind), SimpleNamespace(is_available=lambda: False)
        monkeypatch.setattr(
            torch, "get_device_module", lambda device: module if torch.device(device).type == kind else none
        )
        for name in ("empty_cache", "get_rng_state_all", "mem_get_info", "max_memory_allocated", "device_count"):
            monkeypatch.setattr(torch.cuda, name, lambda *given: pytest.fail("torch.cuda"))
        return module

    return build


@pytest.mark.parametrize(("kind", "calls"), [("mps", ["empty_cache"]), ("xpu", ["empty_cache", "reset"])])
def test_memory_is_freed(machine, kind, calls):
    module = machine(kind)
    free_memory()
    assert module.calls == calls


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_random_states_go_into_a_checkpoint_and_back(machine, kind):
    module = machine(kind)
    before = [state.clone() for state in module.states]
    state, tensors = generator_states()
    assert {name for name in tensors if name.startswith(f"rng.{kind}")} == {
        f"rng.{kind}.{index}" for index in range(len(before))
    }
    for index in range(len(before)):
        module.states[index] = torch.zeros(4, dtype=torch.uint8)
    restore_generators(state, tensors)
    assert [value.tolist() for value in module.states] == [value.tolist() for value in before]


def test_states_of_a_device_that_is_not_here_are_left_out(machine):
    module = machine("xpu")
    accelerators.restore_generators({"cuda.0": torch.zeros(4), "xpu.1": torch.tensor([9]), "xpu.7": torch.zeros(4)})
    assert [state.tolist() for state in module.states] == [[1, 1, 1, 1], [9]]


def test_memory_figures(machine):
    assert (total_bytes(CPU), free_bytes(CPU), device_name(CPU)) == (None, None, "the CPU")
    machine("xpu")
    assert (total_bytes(XPU), free_bytes(XPU), device_name(XPU)) == (1000, 300, "a card")
    assert peak_memory_mib(XPU) == 5.0


def test_memory_figures_of_mps(machine, monkeypatch):
    module = machine("mps")
    monkeypatch.setattr(torch, "mps", module)
    assert (total_bytes(MPS), free_bytes(MPS), device_name(MPS)) == (1000, 0, "mps")  # the driver holds more than that
    monkeypatch.setattr(module, "driver_allocated_memory", lambda: 400)
    assert free_bytes(MPS) == 600 and peak_memory_mib(MPS) == 400 / 2**20


def test_out_of_memory_on_an_apple_gpu():
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"))
    assert not is_out_of_memory(RuntimeError("MPS backend is not there"))


def test_peak_memory_on_windows(monkeypatch):
    """Where the module `resource` is not there."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7 * 2**20))
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("psutil.Process", lambda: process)
    assert peak_memory_mib(CPU) == 7.0
