"""Masked statistics by hand, log-probabilities against float64 NumPy."""

import numpy as np
import pytest
import torch

from lite_c2f.backbone.lm_head import LanguageHead
from lite_c2f.ops import explained_variance, masked_mean, masked_var, masked_whiten, token_logprobs

VALUES = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_mean_and_variance_ignore_what_is_masked():
    assert masked_mean(VALUES, MASK).item() == 2.0
    assert masked_var(VALUES, MASK).item() == pytest.approx(2 / 3, abs=1e-6)
    assert masked_mean(VALUES, torch.zeros_like(MASK)).item() == 0.0


def test_whitening_spans_the_whole_batch():
    spread = (2 / 3) ** 0.5
    expected = torch.tensor([[-1 / spread, 0.0, 0.0], [1 / spread, 0.0, 0.0]])
    torch.testing.assert_close(masked_whiten(VALUES, MASK), expected, atol=1e-6, rtol=0)
    kept = masked_whiten(VALUES, MASK, shift_mean=False)
    torch.testing.assert_close(kept[0, 1].item(), 2.0, atol=1e-6, rtol=0)


def test_nan_behind_the_mask_does_not_leak():
    values = torch.tensor([1.0, float("nan")])
    assert masked_mean(values, torch.tensor([True, False])).item() == 1.0


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0, 9.0])
    mask = torch.tensor([True, True, True, False])
    assert explained_variance(target + 5, target, mask) == pytest.approx(1.0)  # a constant offset is no variance
    assert explained_variance(torch.zeros(4), target, mask) == pytest.approx(0.0)
    assert explained_variance(-target, target, mask) == pytest.approx(-3.0)  # Var(2t) / Var(t) = 4
    assert explained_variance(target, torch.ones(4), mask) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("rows", "vocabulary"), [(7, 50), (300, 5000)])  # below and above one tile of the kernels
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (3.0, 2.0)])
@pytest.mark.parametrize("frozen", [True, False])  # ours, TRL's
def test_logprobs_and_entropy(temperature, rows, vocabulary, scale, softcap, frozen):
    """logits = softcap * tanh(scale * W h / softcap), over the temperature."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(rows, 16), torch.randint(vocabulary, (rows,))
    linear = torch.nn.Linear(16, vocabulary, bias=True).requires_grad_(not frozen)
    head = LanguageHead(linear, scale, softcap)
    weight, bias = (part.detach().double().numpy() for part in (linear.weight, linear.bias))
    logits = scale * (hidden.double().numpy() @ weight.T + bias)
    logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
    np.testing.assert_allclose(head(hidden).detach().numpy(), logits, atol=2e-5)
    logits = logits / temperature
    logits -= logits.max(1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    logprobs, entropy = token_logprobs(hidden, head, targets, temperature)
    np.testing.assert_allclose(logprobs.detach().numpy(), table[np.arange(rows), targets.numpy()], atol=2e-5)
    np.testing.assert_allclose(entropy.detach().numpy(), -(np.exp(table) * table).sum(1), atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "vocabulary"), [(3, 5), (300, 5000)])
def test_gradient_of_logprobs_is_onehot_minus_softmax(rows, vocabulary, bias):
    torch.manual_seed(1)
    hidden, targets = torch.randn(rows, 8, requires_grad=True), torch.randint(vocabulary, (rows,))
    head = torch.nn.Linear(8, vocabulary, bias=bias).requires_grad_(False)
    gradient = torch.randn(rows)
    token_logprobs(hidden, LanguageHead(head), targets, 0.5)[0].backward(gradient)
    direction = direction_of(hidden, head, targets, 0.5)
    np.testing.assert_allclose(hidden.grad.numpy(), gradient[:, None].numpy() * direction, atol=1e-5)


def test_bfloat16_keeps_the_gradient_of_likely_words():
    """W[target] - E_p[W] in bfloat16 loses much of the gradient where p is near 1: both are almost the same row."""
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 3000, bias=False).requires_grad_(False).bfloat16()
    targets = torch.randint(3000, (40,))
    hidden = (30.0 * torch.nn.functional.normalize(head.weight[targets].float())).bfloat16().requires_grad_()
    logprobs = token_logprobs(hidden, LanguageHead(head), targets, 1.0)[0]
    assert -0.05 < logprobs.min() < logprobs.max() < -1e-4
    logprobs.sum().backward()
    direction = direction_of(hidden, head, targets, 1.0)
    error = np.linalg.norm(hidden.grad.double().numpy() - direction, axis=1) / np.linalg.norm(direction, axis=1)
    assert error.max() < 0.02


def test_the_entropy_passes_no_gradient():
    hidden = torch.randn(3, 8, requires_grad=True)
    for frozen in (True, False):
        head = torch.nn.Linear(8, 5).requires_grad_(not frozen)
        assert not token_logprobs(hidden, LanguageHead(head), torch.tensor([0, 4, 2]), 1.0)[1].requires_grad


def direction_of(hidden, head, targets, temperature):
    """Gradient of each target's log-probability to its hidden state, in float64."""
    weight = head.weight.detach().double().numpy()
    bias = 0.0 if head.bias is None else head.bias.detach().double().numpy()
    logits = (hidden.detach().double().numpy() @ weight.T + bias) / temperature
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    return (np.eye(len(weight))[targets.numpy()] - softmax) @ weight / temperature
