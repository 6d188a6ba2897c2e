"""Scores are read at the last real token, whatever the padding and the order."""

import pytest
import torch
from transformers import MistralConfig, MistralForSequenceClassification

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.settings import Lora
from lite_c2f.data.encode import pad_right
from lite_c2f.reward.files import Normalizer
from lite_c2f.reward.score import read_at_last_token, score, scored_row

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
    result = score(roles, ROWS, pad_id=0, batch=batch)
    with roles.use("reward"):
        expected = [float(roles.hidden(torch.tensor([row]))[0, -1].double() @ weight[0].double()) for row in ROWS]
    torch.testing.assert_close(result.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)


def test_a_sequence_classifier_reads_rows_that_end_with_the_padding():
    """By length, not by the last token that is not padding: whatever id fills rows up may also be text."""
    torch.manual_seed(0)
    model = MistralForSequenceClassification(
        MistralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_labels=1,
            pad_token_id=5,
        )
    ).eval()
    read_at_last_token(model)
    rows = [[1, 7, 20, 5], [1, 7, 20], [1, 7, 20, 5, 5, 5], [5]]
    tokens, mask = pad_right(rows, 5)
    with torch.no_grad():
        result = model(input_ids=tokens, attention_mask=mask.long()).logits
        last = [model.model(input_ids=torch.tensor([row])).last_hidden_state[0, len(row) - 1] for row in rows]
    expected = torch.stack(last) @ model.score.weight.T
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert (result[:3] - result[[1, 2, 0]]).abs().min() > 1e-4
