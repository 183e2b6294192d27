"""With its adapters off and no gradient asked for, a fast layer computes the base by the same kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fitune import Adapter
from support.fast_models import fast, plain_model
from support.packed import REGISTRY
from support.preferences import pairs, together


@pytest.mark.parametrize("gradient", [False, True], ids=["no gradient", "gradient"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_adapters_that_are_off(kind: str, gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to transformers' layers without an adapter; with one, what it adds is there again afterwards."""
    model = plain_model(kind, r=5).double().eval()
    off: Any = REGISTRY.find(Adapter, "lora").off
    inputs = together(pairs()).inputs()
    wanted = model(**inputs).logits
    with off(model):
        base = model(**inputs).logits
    assert (wanted - base).abs().max() > 1e-3
    fast(model)
    if not gradient:  # no layer's own forward answers
        own = type(model.get_base_model().model.layers[0])
        monkeypatch.setattr(own, "forward", lambda *given, **named: pytest.fail("transformers computes it"))
    with torch.set_grad_enabled(gradient):
        with off(model):
            torch.testing.assert_close(model(**inputs).logits, base, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)
