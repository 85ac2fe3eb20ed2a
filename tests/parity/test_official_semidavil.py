"""DyCE against SemiDAViL's own code. Runs where the environment variable OFFICIAL_SEMIDAVIL names a checkout of it
(github.com/hritam-98/SemiDAViL)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from dearli_d2.modeling.per_pixel.losses import dyce_loss

CHECKOUT = os.environ.get("OFFICIAL_SEMIDAVIL", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="OFFICIAL_SEMIDAVIL names no checkout of SemiDAViL's code")


@pytest.mark.parametrize(("hard_fraction", "omega"), [(0.2, 0.5), (1.0, 0.0), (0.5, 1.0)])
def test_dyce_is_that_of_the_authors_code(hard_fraction, omega):
    """Value and gradient; a fifth of the 1000 pixels, some more of which carry no loss, is a whole number."""
    path = Path(CHECKOUT, "losses.py")
    assert path.is_file(), f"OFFICIAL_SEMIDAVIL: no losses.py in {CHECKOUT}"
    spec = importlib.util.spec_from_file_location("semidavil_losses", path)
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    target = torch.randint(0, 19, (2, 20, 30)).masked_fill(torch.arange(30) >= 25, 255)
    assert int((target != 255).sum()) == 1000
    results = []
    for loss in (
        lambda x: dyce_loss(x, target, hard_fraction, omega),
        lambda x: code.DyCELoss(19, hard_fraction, omega, ignore_index=255)(x, target),
    ):
        logits = torch.randn(2, 19, 20, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = loss(logits)
        value.backward()
        results.append((value.detach(), logits.grad))
    (own, gradient), (theirs, expected) = results
    assert torch.allclose(own, theirs, rtol=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-8)
