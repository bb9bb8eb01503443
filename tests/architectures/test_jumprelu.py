"""Values of the JumpReLU authors' own notebook; tests/data/jumprelu_golden.json says how they
were made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from architectures import JumpReLUSAE
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Rectangle
from sae_bench.penalties import L0
from tests.small import small_batch, small_sae

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "jumprelu_golden.json").read_text()
)


def near(found: Tensor, key: str, every: int) -> None:
    expected = torch.tensor(GOLDEN[key], dtype=torch.float64)
    torch.testing.assert_close(
        found.detach().flatten()[::every],
        expected,
        rtol=GOLDEN["tolerance"],
        atol=GOLDEN["tolerance"],
    )


def golden_data() -> Tensor:
    generator = np.random.default_rng(9328302)
    return torch.from_numpy(generator.normal(size=(3, 1024, 16)) / np.sqrt(16))


def golden_sae() -> JumpReLUSAE:
    sae = JumpReLUSAE(16, 128, penalty=L0(1.2), kernel=Rectangle(0.1)).double()
    draw = np.random.default_rng(24396).uniform
    W_dec = draw(size=(128, 16)) - 0.5
    values = {
        "W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True),
        "W_enc": draw(size=(16, 128)) - 0.5,
        "b_enc": (draw(size=128) - 0.5) * 0.1,
        "b_dec": (draw(size=16) - 0.5) * 0.1,
        "log_threshold": np.log(0.15 * draw(size=128) * 0.1),
    }
    with torch.no_grad():
        for name, value in values.items():
            sae.get_parameter(name).copy_(torch.from_numpy(value))
    return sae


def test_the_data_are_the_authors() -> None:
    near(golden_data(), "dataset.ravel()[::13001]", 13001)


def test_reconstruction_loss_and_gradients_are_the_authors() -> None:
    sae, x = golden_sae(), golden_data()[0]
    loss = sae.loss(x)
    near(loss.reconstruction, "reconstruction of dataset[0], ravel()[::5001]", 5001)
    assert loss.total.item() == pytest.approx(GOLDEN["loss on dataset[0]"], rel=1e-6)
    loss.total.backward()
    near(sae.get_parameter("log_threshold").grad, "grad log_threshold[::37]", 37)
    near(sae.b_enc.grad, "grad b_enc[::37]", 37)


def test_three_training_steps_are_the_authors() -> None:
    sae = golden_sae()
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3, betas=(0.0, 0.999))
    for x in golden_data():
        optimiser.zero_grad()
        sae.loss(x).total.backward()
        sae.project_gradients_()
        optimiser.step()
        sae.project_parameters_()
    near(sae.get_parameter("log_threshold"), "after three steps log_threshold[::37]", 37)
    near(sae.b_dec, "after three steps b_dec[::7]", 7)


def test_the_defaults_are_the_papers() -> None:
    sae = JumpReLUSAE(4, 8)
    assert sae.slots["activation"] == JumpReLU(LogThreshold(1e-3))
    assert sae.slots["penalty"] == L0(6e-4)
    assert sae.slots["kernel"] == BatchKDE(Rectangle(1e-3), to_input=False)
    assert sae.threshold is not None
    assert sae.threshold.dtype == torch.float32
    assert [tuple(p.shape) for p in sae.threshold_parameters] == [(8,)]


def test_thresholds_stay_in_float32_and_learn_under_autocast() -> None:
    """An update of a thousandth, which bfloat16 would round to nothing, arrives."""
    sae = small_sae(JumpReLUSAE, activation=JumpReLU(LogThreshold(0.1)))
    (parameter,) = sae.threshold_parameters
    before = parameter.detach().clone()
    optimiser = torch.optim.Adam([parameter], lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(small_batch())
    loss.total.backward()
    optimiser.step()
    assert parameter.dtype == torch.float32
    torch.testing.assert_close((parameter - before).abs(), torch.full_like(before, 1e-3))
    narrow = before.bfloat16()
    assert torch.equal(narrow + (parameter - before).bfloat16(), narrow)
