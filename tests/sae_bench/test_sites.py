"""Sites against independent readings: the models' own hidden states, hooks, and arithmetic."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.sites import capture, resolve_site, resume_at
from tests.tiny import FAMILIES, LAYERS, tiny_model

KINDS = ("resid_pre", "resid_post", "mlp_out", "attn_z")
FINAL_NORM = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "neox": "gpt_neox.final_layer_norm",
    "gemma2": "model.norm",
}
EMBEDDING = {
    "llama": "model.embed_tokens",
    "gpt2": "transformer.wte",
    "neox": "gpt_neox.embed_in",
    "gemma2": "model.embed_tokens",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def lm(family: str) -> LanguageModel:
    return tiny_model(family)


def tokens(batch: int = 3, length: int = 9) -> tuple[Tensor, Tensor]:
    ids = torch.randint(4, 60, (batch, length), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids, dtype=torch.bool)


def read(lm: LanguageModel, ids: Tensor, mask: Tensor, *names: str) -> dict[str, Tensor]:
    return capture(lm, ids, mask, [resolve_site(lm, name) for name in names])


@contextmanager
def count_runs(lm: LanguageModel) -> Iterator[Counter[str]]:
    """How often each module that holds weights is run."""
    counts: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, path=path: counts.update([path]))
        for path, module in lm.model.named_modules()
        if list(module.parameters(recurse=False))
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def layers_run(lm: LanguageModel, counts: Counter[str]) -> set[int]:
    prefix = f"{lm.layers_path}."
    return {int(path[len(prefix) :].split(".")[0]) for path in counts if path.startswith(prefix)}


def full_pass_with(
    lm: LanguageModel, ids: Tensor, mask: Tensor, name: str, value: Tensor
) -> Tensor:
    """Logits of a whole pass in which a hook of its own overwrites the site."""
    site = resolve_site(lm, name)
    module = lm.model.get_submodule(site.module)
    if site.at_input:
        hook = module.register_forward_pre_hook(lambda _, args: (value, *args[1:]))
    else:
        hook = module.register_forward_hook(lambda _, args, output: value)
    with torch.no_grad():
        logits = lm.logits(ids, mask)
    hook.remove()
    return logits


def test_residual_sites_are_the_hidden_states(lm: LanguageModel) -> None:
    ids, mask = tokens()
    hidden = lm.model(ids, output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        torch.testing.assert_close(
            read(lm, ids, mask, f"layers.{layer}.resid_pre")[f"layers.{layer}.resid_pre"],
            hidden[layer],
        )
    for layer in range(LAYERS - 1):  # the last hidden state is taken after the final norm
        name = f"layers.{layer}.resid_post"
        torch.testing.assert_close(read(lm, ids, mask, name)[name], hidden[layer + 1])
    name = f"layers.{LAYERS - 1}.resid_post"
    norm = lm.model.get_submodule(FINAL_NORM[lm.name.removeprefix("tiny-")])
    torch.testing.assert_close(norm(read(lm, ids, mask, name)[name]), hidden[-1])


def test_mlp_out_and_attn_z_add_up_to_the_residual_stream(family: str, lm: LanguageModel) -> None:
    ids, mask = tokens()
    layer = lm.layers[1]
    got = read(lm, ids, mask, *(f"layers.1.{kind}" for kind in KINDS))
    z, mlp, pre, post = (got[f"layers.1.{kind}"] for kind in ("attn_z", "mlp_out", *KINDS[:2]))
    match family:
        case "llama":
            attention = layer.self_attn.o_proj(z)
            mlp_again = layer.mlp(layer.post_attention_layernorm(pre + attention))
        case "gpt2":
            attention = layer.attn.c_proj(z)
            mlp_again = layer.mlp(layer.ln_2(pre + attention))
        case "neox":
            attention = layer.attention.dense(z)
            mlp_again = layer.mlp(layer.post_attention_layernorm(pre))
        case "gemma2":
            attention = layer.post_attention_layernorm(layer.self_attn.o_proj(z))
            normed = layer.pre_feedforward_layernorm(pre + attention)
            mlp_again = layer.post_feedforward_layernorm(layer.mlp(normed))
    torch.testing.assert_close(post, pre + attention + mlp)
    torch.testing.assert_close(mlp, mlp_again)
    assert attention.norm() > 0.1 * post.norm()
    assert mlp.norm() > 0.1 * post.norm()


def test_width_comes_from_the_model() -> None:
    assert resolve_site(tiny_model("gemma2"), "layers.1.attn_z").d_in == 48  # 4 heads of 12
    assert resolve_site(tiny_model("gpt2"), "layers.1.attn_z").d_in == 32
    assert resolve_site(tiny_model("llama"), "model.layers.1.mlp.gate_proj").d_in == 48


def test_module_paths_read_their_first_output(family: str, lm: LanguageModel) -> None:
    ids, mask = tokens()
    attention = {"gpt2": "attn", "neox": "attention"}.get(family, "self_attn")
    path = f"{lm.layers_path}.2.{attention}"  # gives a tuple
    seen = []
    hook = lm.model.get_submodule(path).register_forward_hook(lambda _, a, out: seen.append(out[0]))
    lm.logits(ids, mask)
    hook.remove()
    torch.testing.assert_close(read(lm, ids, mask, path)[path], seen[0])


def test_depth(family: str, lm: LanguageModel) -> None:
    assert [resolve_site(lm, f"layers.{n}.{KINDS[n]}").depth for n in range(LAYERS)] == [0, 1, 2]
    assert resolve_site(lm, EMBEDDING[family]).depth == -1
    assert resolve_site(lm, FINAL_NORM[family]).depth == LAYERS


def test_several_sites_from_one_pass_equal_one_by_one(lm: LanguageModel) -> None:
    ids, mask = tokens()
    names = [f"layers.{layer}.{kind}" for layer in (2, 0) for kind in KINDS]
    together = read(lm, ids, mask, *names)
    assert set(together) == set(names)
    for name in names:
        assert torch.equal(together[name], read(lm, ids, mask, name)[name])


def test_pass_stops_after_the_deepest_site(lm: LanguageModel) -> None:
    ids, mask = tokens()
    sites = [resolve_site(lm, name) for name in ("layers.1.resid_post", "layers.0.attn_z")]
    with count_runs(lm) as counts:
        capture(lm, ids, mask, sites)
    assert layers_run(lm, counts) == {0, 1}
    assert not counts["lm_head"]
    assert set(counts.values()) == {1}


def test_capture_leaves_the_model_as_it_was(lm: LanguageModel) -> None:
    ids, mask = tokens()
    before = lm.logits(ids, mask)
    value = read(lm, ids, mask, "layers.1.resid_post")["layers.1.resid_post"]
    resume_at(lm, ids, mask, resolve_site(lm, "layers.1.mlp_out")).logits_with(value)
    assert torch.equal(lm.logits(ids, mask), before)
    assert not any(module._forward_pre_hooks for module in lm.model.modules())
    assert not any("forward" in vars(module) for module in lm.model.modules())


def test_activations_can_be_trained_on(lm: LanguageModel) -> None:
    ids, mask = tokens()
    x = read(lm, ids, mask, "layers.1.resid_post")["layers.1.resid_post"]
    weight = torch.ones(32, requires_grad=True)
    (x * weight).sum().backward()  # refused for tensors made in inference mode
    assert weight.grad is not None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_at_real_positions(lm: LanguageModel, side: str, kind: str) -> None:
    name = f"layers.{LAYERS - 1}.{kind}"
    ids, _ = tokens(batch=3, length=9)
    lengths = (9, 6, 3)
    padded = torch.full_like(ids, lm.pad_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(9 - length, 9) if side == "left" else slice(length)
        padded[row, place] = ids[row, :length]
        mask[row, place] = True
    got = read(lm, padded, mask, name)[name]
    logits = lm.logits(padded, mask)
    for row, length in enumerate(lengths):
        alone = ids[row : row + 1, :length]
        ones = torch.ones_like(alone, dtype=torch.bool)
        torch.testing.assert_close(
            got[row][mask[row]], read(lm, alone, ones, name)[name][0], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            logits[row][mask[row]], lm.logits(alone, ones)[0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_suffix_equals_a_full_pass(lm: LanguageModel, kind: str, layer: int) -> None:
    name = f"layers.{layer}.{kind}"
    ids, mask = tokens()
    mask[1, :4] = False
    site = resolve_site(lm, name)
    run = resume_at(lm, ids, mask, site)
    assert torch.equal(run.logits, lm.logits(ids, mask))
    assert torch.equal(run.activations, read(lm, ids, mask, name)[name])
    assert torch.equal(run.logits_with(run.activations), run.logits)
    for value in (torch.zeros_like(run.activations), run.activations.flip(0)):
        expected = full_pass_with(lm, ids, mask, name, value)
        assert torch.equal(run.logits_with(value), expected)
        assert not torch.equal(expected[mask], run.logits[mask])


def test_suffix_runs_only_what_comes_after(family: str, lm: LanguageModel) -> None:
    ids, mask = tokens()
    expected = {
        "layers.1.resid_pre": {1, 2},
        "layers.1.attn_z": {1, 2},
        "layers.1.mlp_out": {1, 2},
        "layers.1.resid_post": {2},
        "layers.2.resid_post": set(),
        FINAL_NORM[family]: set(),
    }
    for name, layers in expected.items():
        run = resume_at(lm, ids, mask, resolve_site(lm, name))
        with count_runs(lm) as counts:
            run.logits_with(run.activations)
        assert layers_run(lm, counts) == layers, name


def test_suffix_at_modules_outside_the_layers(family: str, lm: LanguageModel) -> None:
    ids, mask = tokens()
    for name in (EMBEDDING[family], FINAL_NORM[family]):
        run = resume_at(lm, ids, mask, resolve_site(lm, name))
        value = 0.5 * run.activations
        expected = full_pass_with(lm, ids, mask, name, value)
        assert torch.equal(run.logits_with(value), expected)


def test_layers_that_share_state_are_not_skipped() -> None:
    """A model whose last layer needs what the first one left aside."""
    lm = tiny_model("llama")
    left: list[Tensor] = []
    first, last = lm.layers[0].forward, lm.layers[2].forward

    def leave(*args: Tensor, **kwargs: object) -> Tensor:
        left[:] = [first(*args, **kwargs)]
        return left[0]

    lm.layers[0].forward = leave
    lm.layers[2].forward = lambda *args, **kwargs: last(*args, **kwargs) + left.pop()
    site = resolve_site(lm, "layers.1.resid_post")
    assert site.skippable == 0
    ids, mask = tokens()
    run = resume_at(lm, ids, mask, site)
    assert torch.equal(run.logits_with(run.activations), run.logits)
    assert lm.layers[0].forward is leave  # wrappers set by others survive


def test_models_that_add_in_place_do_not_change_what_was_read() -> None:
    lm = tiny_model("llama")
    ids, mask = tokens()
    clean = read(lm, ids, mask, "layers.1.mlp_out")["layers.1.mlp_out"]
    lm.layers[1].mlp = torch.nn.Sequential(lm.layers[1].mlp, _AddOneInPlace())
    path = f"{lm.layers_path}.1.mlp.0"
    assert torch.equal(read(lm, ids, mask, path, "layers.2.resid_post")[path], clean)

    value = torch.zeros(3, 9, 32)
    resume_at(lm, ids, mask, resolve_site(lm, path)).logits_with(value)
    assert not value.any()

    lm.layers[2] = _AddsToItsInput(lm.layers[2])
    run = resume_at(lm, ids, mask, resolve_site(lm, f"{lm.layers_path}.2.layer.mlp"))
    for _ in range(2):
        assert torch.equal(run.logits_with(run.activations), run.logits)


class _AddsToItsInput(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.layer(x.add_(1.0), **kwargs)


class _AddOneInPlace(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1.0)


def test_gradient_of_logits_at_the_site(lm: LanguageModel) -> None:
    ids, mask = tokens(batch=1, length=5)
    run = resume_at(lm, ids, mask, resolve_site(lm, "layers.1.resid_post"))

    def margin(logits: Tensor) -> Tensor:
        correct = logits[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return (correct - logits[0, :-1].mean(dim=-1)).sum()

    value = run.activations.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(run.logits_with(value)), value)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(value.shape, generator=generator)
    step = 1e-2 * direction
    up, down = (margin(run.logits_with(run.activations + s * step)) for s in (1.0, -1.0))
    expected = ((up - down) / 2e-2).item()
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=2e-2, abs=2e-2)
    assert not run.logits_with(run.activations).requires_grad


def test_reduced_precision(family: str) -> None:
    lm, exact = tiny_model(family, dtype=torch.bfloat16), tiny_model(family)
    ids, mask = tokens()
    site = resolve_site(lm, "layers.1.resid_post")
    value = capture(lm, ids, mask, [site])[site.name]
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(
        value.float(), read(exact, ids, mask, site.name)[site.name], atol=0.1, rtol=0.1
    )
    run = resume_at(lm, ids, mask, site)
    replaced = run.logits_with(run.activations.float())  # SAEs work in float32
    assert torch.equal(replaced, run.logits)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.3.resid_pre", r"the model has layers 0\.\.2"),
        ("layers.-1.resid_post", r"the model has layers 0\.\.2"),
        ("layers.1.resid", r"unknown site 'layers.1.resid'.*0\.\.2.*nearest"),
        ("", "unknown site"),
        ("model.layers.1.mpl", r"nearest: model\.layers\.1\.mlp"),
        ("model.layers", "not run by a forward pass"),
        ("model", "must be a tensor"),
    ],
)
def test_unknown_sites_are_named_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve_site(tiny_model("llama"), name)
    assert "\n" not in str(caught.value)


def test_a_layer_without_or_with_two_attentions_is_refused() -> None:
    lm = tiny_model("llama")
    lm.layers[0].other_attn = torch.nn.ModuleDict({"o_proj": torch.nn.Linear(32, 32)})
    with pytest.raises(InputError, match="several output projections"):
        resolve_site(lm, "layers.0.attn_z")
    lm.layers[1].self_attn = torch.nn.Identity()
    lm.layers[1].mlp, lm.layers[1].network = torch.nn.Identity(), lm.layers[1].mlp
    with pytest.raises(InputError, match="found none"):
        resolve_site(lm, "layers.1.attn_z")
    del lm.layers[1].mlp
    with pytest.raises(InputError, match="no MLP among self_attn"):
        resolve_site(lm, "layers.1.mlp_out")


def test_shapes_that_are_no_sites_are_refused() -> None:
    lm = tiny_model("gpt2")
    lm.layers[0].mlp.register_forward_hook(lambda _, args, output: output.flatten(0, 1)[None])
    with pytest.raises(InputError, match=r"shape \(1, 6, 32\)"):
        resolve_site(lm, "layers.0.mlp_out")
