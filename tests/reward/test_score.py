"""Scores are read at the last real token, whatever the padding and the order."""

import pytest
import torch

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.roles import Roles
from lite_c2f.config import Lora
from lite_c2f.reward.score import Normalizer, score, scored_row

ROWS = [[1, 5, 9], [1, 7, 20, 41, 8, 2], [1, 4], [1, 30, 31, 32]]


def test_a_row_ends_with_eos_only_if_the_response_did():
    assert scored_row([1, 2], [5, 6], True, 9) == [1, 2, 5, 6, 9]
    assert scored_row([1, 2], [5, 6], False, 9) == [1, 2, 5, 6]


def test_normalizer():
    assert Normalizer(2.0, 4.0)(10.0) == 2.0


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_scores_by_one_row_at_a_time(quantized, batch):
    torch.manual_seed(0)
    roles = Roles(quantized(), Lora(r=4), ("reward",))
    with torch.no_grad():
        for parameter in roles.adapter_parameters("reward"):
            parameter.normal_(std=0.1)
    weight = torch.randn(1, 32)
    roles.add_head("reward", ScalarHead.of(weight))
    found = score(roles, ROWS, pad_id=0, batch=batch)
    with roles.use("reward"):
        expected = [float(roles.hidden(torch.tensor([row]))[0, -1].double() @ weight[0].double()) for row in ROWS]
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
