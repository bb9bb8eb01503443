"""The model card of an SAE, written from its record."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd
from huggingface_hub import ModelCardData

from sae_bench.components import to_plain
from sae_bench.errors import InputError
from sae_bench.hub import is_repo
from sae_bench.sae import SparseAutoencoder

LIBRARY = "sae-ablations"

METRICS = {
    "l0": "L0",
    "fvu": "FVU",
    "delta_lm_loss": "delta LM loss",
    "loss_recovered": "loss recovered",
    "dead": "dead latents",
    "tokens": "tokens",
}
"""Columns of an evaluation, as a card calls them."""

UNITS = (
    "Coefficient, thresholds and bandwidths are those of training, where activations are divided "
    "by the activation scale (E‖x‖² = 1); the saved weights are folded back."
)

UNNAMED = "path/to/this/folder"


def model_card(
    sae: SparseAutoencoder,
    metrics: pd.DataFrame | None = None,
    *,
    source: str = UNNAMED,
    license: str | None = None,
) -> str:
    """A README.md with the front matter that the hub reads: what the SAE is, how it was trained as
    far as its provenance tells, its metrics, and how to load it.

    Args:
        sae: the SAE, in any format's or this library's own provenance.
        metrics: rows of `evaluate` for this SAE, one an evaluation set.
        source: what `load_sae` has to be given.
        license: the hub's name of a licence; None: the card names none.

    Raises:
        InputError: metrics that are no such table, or those of several SAEs.
    """
    check_metrics(metrics)
    arm = _mapping(sae.provenance.get("arm"))
    parts = [
        f"---\n{_front_matter(sae, license)}\n---",
        f"# {_name(sae)} sparse autoencoder",
        _introduction(sae),
        _table(["", ""], _facts(sae, arm)),
        *([UNITS] if arm else []),
        *_results(metrics),
        "## How to load it",
        f'```python\nfrom sae_bench import load_sae\n\nsae = load_sae("{source}")\n'
        "codes = sae.encode(x)  # x: raw activations of shape (tokens, "
        f"{sae.d_in})\nx_hat = sae.decode(codes)\n```",
        *_foreign_code(arm),
        f"Written by {LIBRARY} {version(LIBRARY)}.",
    ]
    return "\n\n".join(parts) + "\n"


def check_metrics(metrics: Any) -> None:
    """Whether a card can show `metrics`.

    Raises:
        InputError: no table as `evaluate` makes it, or one of several SAEs.
    """
    if metrics is None:
        return
    if not isinstance(metrics, pd.DataFrame) or not set(metrics) & set(METRICS):
        raise InputError(
            "model card: metrics must be rows of `evaluate`, a table with columns such as l0, got "
            f"{type(metrics).__name__}"
        )
    if "sae" in metrics and metrics["sae"].nunique() > 1:
        raise InputError("model card: metrics of several SAEs; keep the rows of this one")


def _front_matter(sae: SparseAutoencoder, license: str | None) -> str:
    model, text = sae.provenance.get("model"), _mapping(sae.provenance.get("text"))
    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        base_model=model if isinstance(model, str) and is_repo(model) else None,
        datasets=[text["name"]] if is_repo(str(text.get("name", ""))) else None,
        tags=["sparse-autoencoder", "interpretability", _name(sae).lower()],
    )
    return data.to_yaml()


def _name(sae: SparseAutoencoder) -> str:
    return type(sae).__name__.removesuffix("SAE")


def _introduction(sae: SparseAutoencoder) -> str:
    where = [
        f"{before} {_cell(sae.provenance[key])}"
        for key, before in (("model", "of"), ("site", "at"))
        if sae.provenance.get(key)
    ]
    return (
        f"A sparse autoencoder with {sae.d_sae} latents for {' '.join(['activations', *where])} "
        f"({sae.d_in} dimensions). It takes raw activations."
    )


def _facts(sae: SparseAutoencoder, arm: Mapping[str, Any]) -> list[list[str]]:
    """Rows of name and value; what is not known is left out."""
    known = sae.provenance
    slots = dict(_mapping(arm.get("slots")) or to_plain(sae.slots))
    penalty = dict(_mapping(slots.pop("penalty", None)))
    coefficient = penalty.pop("coefficient", None)
    kernel = slots.pop("kernel", None)
    if penalty.get("class") == "NoPenalty" and not arm:
        penalty, coefficient = {}, None  # not known: an SAE of another library
    recipe = _mapping(arm.get("recipe"))
    facts = {
        "architecture": type(sae).__name__,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "activation": slots.pop("activation", None),
        "penalty": penalty,
        "coefficient": coefficient,
        "kernel": kernel if sae.threshold_parameters else None,
        **slots,
        "model": known.get("model"),
        "site": known.get("site"),
        "context": known.get("context"),
        "training data": known.get("text"),
        "training tokens": recipe.get("tokens"),
        "recipe": recipe,
        "seed": arm.get("seed"),
        "activation scale": known.get("activation_scale"),
        "converted from": known.get("converted_from"),
        "fetched from": known.get("hub"),
    }
    return [[name, _cell(value)] for name, value in facts.items() if value not in (None, {}, "")]


def _results(metrics: pd.DataFrame | None) -> list[str]:
    if metrics is None or metrics.empty:
        return []
    columns = [name for name in METRICS if name in metrics]
    rows = [
        [_cell(row.get("eval_set", "held-out")), *(_measured(row, name) for name in columns)]
        for row in metrics.to_dict("records")
    ]
    heads = ["evaluation set", *(METRICS[name] for name in columns)]
    note = (
        "FVU: squared error over squared deviation from the mean. Loss recovered: relative to "
        "ablation with zeros. In brackets: 95% intervals over documents."
    )
    return ["## Metrics", _table(heads, rows), note]


def _measured(row: Mapping[Any, Any], name: str) -> str:
    """A value with its interval, if it has one."""

    def number(key: str) -> str | None:
        value = row.get(key)
        known = isinstance(value, int | float) and math.isfinite(value)
        return f"{value:.6g}" if known else None

    value, low, high = number(name), number(f"{name}_low"), number(f"{name}_high")
    if value is None:
        return "-"
    return f"{value} [{low}, {high}]" if low and high else value


def _foreign_code(arm: Mapping[str, Any]) -> list[str]:
    if "source" not in arm:
        return []
    return ["It has parts of its author's own: import the modules that define them first."]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """A value in a table: one line, nothing that the table or the page would understand."""
    text = " ".join(_shown(value).split())
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;")):
        text = text.replace(plain, escaped)
    return text[:1000]


def _shown(value: Any) -> str:
    """A record as `Class(field=value, ...)`, a plain value as it is."""
    if isinstance(value, Mapping):
        fields = [f"{key}={_shown(item)}" for key, item in value.items() if key != "class"]
        kind, inside = value.get("class"), ", ".join(fields)
        return (f"{kind}({inside})" if inside else str(kind)) if kind else inside
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping: provenance may come from anywhere."""
    return value if isinstance(value, Mapping) else {}
