"""Linear layers by oneDNN: values, gradients and names are those of PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dearli_d2.modeling import linear as module
from dearli_d2.modeling.linear import Linear, feed_forward, linear, product, with_fast_products


@pytest.fixture(params=[True, False], ids=["onednn", "pytorch"])
def onednn(request, monkeypatch):
    if request.param and not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(module, "_onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(module, "_LEAST_PRODUCTS", 0)
    monkeypatch.setattr(module, "_BLOCK", 16)  # of 37 x 2 tokens: the last block is smaller


def compare(function, reference, leaves, upstream=None):
    """Values and gradients to 1e-5, relative, against float64."""
    right = [x.detach().double().requires_grad_() for x in leaves]
    mine, theirs = function(*leaves), reference(*right)
    upstream = torch.randn(mine.shape) if upstream is None else upstream
    ours = [mine, *torch.autograd.grad(mine, leaves, upstream)]
    expected = [theirs, *torch.autograd.grad(theirs, right, upstream.double())]
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*shape).requires_grad_() for shape in shapes]


@pytest.mark.usefixtures("onednn")
def test_values_and_gradients_equal_float64():
    compare(linear, F.linear, leaves((37, 24), (10, 24), (10,)))
    compare(linear, F.linear, leaves((2, 37, 24), (10, 24)))


@pytest.mark.usefixtures("onednn")
def test_inputs_and_gradients_need_not_be_contiguous():
    def turned(f):
        return lambda x, w, b: f(x.transpose(0, 1), w[::2], b[::2])

    compare(
        turned(linear), turned(F.linear), leaves((2, 37, 24), (20, 24), (20,)), torch.ones(1, 1, 1).expand(37, 2, 10)
    )


@pytest.mark.usefixtures("onednn")
def test_a_feed_forward_network_equals_its_two_layers():
    first, second = Linear(24, 40), Linear(40, 24)
    x, *_ = leaves((2, 37, 24))
    compare(
        lambda x, *_: feed_forward(x, first, second),
        lambda x, w1, b1, w2, b2: F.linear(F.linear(x, w1, b1).relu(), w2, b2),
        [x, *first.parameters(), *second.parameters()],
    )


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_products_of_a_batch_equal_float64(batch):
    a, b = torch.randn(batch, 9, 24), torch.randn(batch, 7, 24).mT
    assert torch.allclose(product(a, b).double(), a.double() @ b.double(), atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_autocast_computes_in_its_type():
    layer = Linear(24, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(5, 24)).dtype == torch.bfloat16


@pytest.mark.usefixtures("onednn")
def test_layers_of_a_module_keep_names_values_and_parameters():
    plain = nn.Sequential(
        nn.Linear(24, 12), nn.GELU(), nn.TransformerEncoderLayer(12, 2, 16, dropout=0, batch_first=True)
    )
    fast = with_fast_products(copy.deepcopy(plain))
    assert [type(fast[0]), type(fast[2].linear1)] == [Linear, Linear]
    fast.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 5, 24)
    assert torch.allclose(fast(x), plain(x), atol=1e-5)
