"""Checkpoints: whole or not at all, the newest good one found, nothing of a generator or an optimiser lost."""

import math
import random

import numpy as np
import pytest
import torch

from lite_c2f.errors import RunError
from lite_c2f.storage.checkpoints import (
    FORMAT,
    HASHES,
    STATE,
    TENSORS,
    Checkpoint,
    CheckpointStore,
    check_identity,
    generator_states,
    optimizer_tensors,
    restore_generators,
    restore_optimizer,
)


def a_checkpoint(step):
    return Checkpoint(step, {"kl": 0.1 + step}, {"w": torch.full((3,), float(step)), "n": torch.tensor(step)})


def test_newest_comes_back_as_it_was(tmp_path):
    store = CheckpointStore(tmp_path / "c")
    assert store.newest() == (None, [])
    shared = torch.arange(6.0)
    store.save(Checkpoint(7, {"x": [1, 2.5, None]}, {"a": shared[:3], "b": shared, "t": shared.view(2, 3).T}))
    found, damaged = store.newest()
    assert (found.step, found.state, damaged) == (7, {"x": [1, 2.5, None]}, [])
    assert found.tensors["a"].tolist() == [0, 1, 2] and found.tensors["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found.folder == tmp_path / "c" / "step-000007"
    store.clear()
    assert store.newest() == (None, []) and not (tmp_path / "c").exists()


def test_the_last_and_the_best_are_kept(tmp_path):
    """How good a checkpoint is becomes known when the next one is saved."""
    store, scores = CheckpointStore(tmp_path, keep=2), {1: 0.1, 2: 0.9, 3: 0.3, 4: math.nan, 5: 0.2}
    for step in range(1, 7):
        store.save(a_checkpoint(step), {known: score for known, score in scores.items() if known < step})
    assert [folder.name for folder in store.folders()] == ["step-000002", "step-000005", "step-000006"]
    assert store.best(scores).step == 2 and store.best({}) is None and store.best({4: 1.0}) is None


@pytest.mark.parametrize("file", [TENSORS, STATE, HASHES])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_one_is_passed_over(tmp_path, file, harm):
    store = CheckpointStore(tmp_path)
    store.save(a_checkpoint(1))
    target = store.save(a_checkpoint(2)) / file
    content = bytearray(target.read_bytes())
    if harm == "remove":
        target.unlink()
    else:
        content[len(content) // 2] ^= 4
        target.write_bytes(content if harm == "flip" else content[:-3])
    found, damaged = store.newest()
    assert found.step == 1 and len(damaged) == 1 and "step-000002" in damaged[0]
    for name in (TENSORS, STATE):
        (tmp_path / "step-000001" / name).write_bytes(b"{}")
    found, damaged = store.newest()
    assert found is None and len(damaged) == 3 and "is whole: beginning anew" in damaged[-1]


def test_damaged_ones_do_not_push_out_what_is_saved_from_now_on(tmp_path):
    """All are damaged, and the stage begins anew: its first checkpoints have lower numbers, and stay."""
    store = CheckpointStore(tmp_path, keep=1)
    for step in (23, 24):
        (store.save(a_checkpoint(step)) / TENSORS).write_bytes(b"cut")
    assert store.newest()[0] is None
    store.set_aside()
    store.save(a_checkpoint(0))
    store.save(a_checkpoint(10))
    assert [folder.name for folder in store.folders()] == ["step-000010"] and store.newest()[0].step == 10
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == ["damaged-step-000024"]


def test_stray_folders_are_no_checkpoints(tmp_path):
    (tmp_path / "step-000009.tmp").mkdir()
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-000010").write_text("a file")
    assert CheckpointStore(tmp_path).newest() == (None, [])


def test_generators_go_on_where_they_were():
    own = torch.Generator().manual_seed(5)

    def draw():
        numbers = [random.gauss(0, 1), random.random(), float(np.random.randn()), float(np.random.rand())]
        return [*numbers, torch.rand(2).tolist(), torch.randperm(9, generator=own).tolist()]

    draw()  # leaves a second gaussian waiting in python's and NumPy's
    state, tensors = generator_states({"own": own})
    expected = [draw() for _ in range(3)]
    random.seed(99), np.random.seed(99), torch.manual_seed(99), own.manual_seed(99)
    assert draw() != expected[0]
    restore_generators(state, tensors, {"own": own})
    assert [draw() for _ in range(3)] == expected


def test_optimizer_goes_on_where_it_was():
    def steps(weights, optimizer, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()

    def fresh():
        weights = [torch.ones(4, 3, requires_grad=True), torch.ones(5, requires_grad=True)]
        return weights, torch.optim.AdamW(weights, lr=0.1, weight_decay=0.0)

    weights, optimizer = fresh()
    steps(weights, optimizer, 3, 0)
    tensors = {name: value.clone() for name, value in optimizer_tensors("o.policy", optimizer).items()}
    assert {name.rsplit(".", 1)[1] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    others, other = fresh()
    with torch.no_grad():
        for left, right in zip(others, weights, strict=True):
            left.copy_(right)
    restore_optimizer("o.policy", other, tensors | {"o.critic.0.exp_avg": torch.zeros(1)})
    steps(weights, optimizer, 4, 1)
    steps(others, other, 4, 1)
    assert all(torch.equal(left, right) for left, right in zip(weights, others, strict=True))
    assert not torch.equal(weights[0], torch.ones(4, 3))


def test_a_checkpoint_of_an_earlier_version_has_new_settings_at_their_defaults(tmp_path):
    """It does not name a setting that came later: then it was made as the default says."""
    now = {"coarse": {"lr": 0.1, "critic": "reward_model", "length": {"tau": 0.2}}}
    check_identity(tmp_path, FORMAT, {"coarse": {"lr": 0.1, "length": {}}}, now, "begin anew")
    other = {"coarse": {**now["coarse"], "critic": "zero"}}
    with pytest.raises(RunError, match=r"coarse\.critic='reward_model', now 'zero'"):
        check_identity(tmp_path, FORMAT, {"coarse": {"lr": 0.1, "length": {}}}, other, "begin anew")
