"""Alone, nothing changes; shares are a partition, as even as can be. (Several processes: tests/faults.)"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.config.loading import load_config
from lite_c2f.errors import ConfigError
from lite_c2f.runs.manifest import check_processes
from lite_c2f.runtime import distributed


@pytest.fixture
def of(monkeypatch):
    """Be process `place` of `count`."""

    def be(place, count):
        monkeypatch.setattr(distributed, "rank", lambda: place)
        monkeypatch.setattr(distributed, "world", lambda: count)

    return be


def test_alone_nothing_happens():
    distributed.join(), distributed.wait(), distributed.leave()
    assert (distributed.world(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    tensor = torch.ones(3)
    distributed.add([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert distributed.gather("x") == ["x"] and distributed.share([4, 2, 9], [0] * 10) == [4, 2, 9]
    with distributed.first_process_first():
        pass


def test_long_rows_are_dealt_out_back_and_forth(of):
    sizes = [10, 80, 30, 70, 20, 60, 50, 40]  # by size: 1 3 5 6 7 2 4 0
    of(0, 2)
    assert distributed.share(range(8), sizes) == [1, 6, 7, 0]  # 80 + 50 + 40 + 10
    of(1, 2)
    assert distributed.share(range(8), sizes) == [3, 5, 2, 4]  # 70 + 60 + 30 + 20


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_shares_are_a_partition_of_like_sizes(sizes, count, data):
    rows = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True, max_size=len(sizes)))
    patch = pytest.MonkeyPatch()
    try:
        shares = []
        for place in range(count):
            patch.setattr(distributed, "rank", lambda place=place: place)
            patch.setattr(distributed, "world", lambda: count)
            shares.append(distributed.share(rows, sizes))
    finally:
        patch.undo()
    assert sorted(row for share in shares for row in share) == sorted(rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    if len(rows) % count == 0:
        assert len({len(share) for share in shares}) == 1
        totals = [sum(sizes[row] for row in share) for share in shares]
        assert max(totals) - min(totals) <= max((sizes[row] for row in rows), default=0)


def test_batches_have_to_be_shared_out_evenly(of):
    of(0, 3)
    with pytest.raises(ConfigError, match=r"reward\.batch is 32 with 3 processes; expected a multiple of 3"):
        check_processes(load_config({}))
    with pytest.raises(ConfigError, match=r"coarse\.rollouts / coarse\.minibatches is 32 with 3"):
        check_processes(load_config({}, ["reward.batch=33"]))
    check_processes(load_config({}, ["reward.batch=33", "coarse.rollouts=66"]))
