"""Part (i) of `kde_state`: what state does to the noise and the bias of threshold gradients.

The instrument (`sae_bench.noise`) measures; here its rows are put in relation:

    noise = sqrt(variance of a step) / slope, |bias| / slope
        slope: the root mean square of the finite differences over the latents of a bucket, without
        their own noise; from any row, since relative_noise = noise
    step ratio = variance of a step / that of the batch estimate, straight-through, at the same
        bandwidth and batch size
    path ratio = the same of the autocorrelation-integrated variance, times the batches that a step
        consumes: at equal numbers of tokens
    `batch x T`: the batch estimate at T times the batch, the control with equal samples

Weights are frozen. Memory costs no bias then: what has gone stale while thresholds and weights
move shows in training alone.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ablations._estimators import LINES, STATES, STEPS, line, look
from sae_bench import bands, plots

MEASURES = {
    "step_ratio": "variance of a step / batch's",
    "path_ratio": "integrated variance / batch's, at equal tokens",
    "relative_bias": "|bias| / slope",
}
KEYS = ["arm", "bucket"]


def relative(noise: pd.DataFrame) -> pd.DataFrame:
    """The rows of the instrument with line, name (of line or control), times (batches that a step
    consumes), slope, noise and the `MEASURES`; NaN where the batch estimate never has a gradient.

    Args:
        noise: rows of `gradient_noise` with the column arm.
    """
    rows = noise.assign(line=line(noise["estimator"]))
    rows["times"] = rows["batch_size"] // rows["batch_size"].min()
    control = np.where(rows["times"] > 1, " x " + rows["times"].astype(str), "")
    rows["name"] = rows["line"] + control
    rows["slope"] = np.sqrt(rows["variance"]) / rows["relative_noise"]
    rows["slope"] = rows.groupby(KEYS)["slope"].transform("median")
    rows["noise"] = np.sqrt(rows["variance"]) / rows["slope"]
    rows["relative_bias"] = rows["bias"].abs() / rows["slope"]
    base = rows[rows["name"] == "batch"].set_index([*KEYS, "bandwidth"])
    of_batch = base[["variance", "integrated_variance"]]
    of_batch = of_batch.where(of_batch > 0).add_suffix("_of_batch")
    rows = rows.merge(of_batch, left_on=[*KEYS, "bandwidth"], right_index=True, how="left")
    rows["step_ratio"] = rows["variance"] / rows["variance_of_batch"]
    integrated = rows["integrated_variance"] / rows["integrated_variance_of_batch"]
    rows["path_ratio"] = rows["times"] * integrated
    return rows


def middle(rows: pd.DataFrame) -> float:
    """The bandwidth at which several T were measured."""
    several = rows[rows["steps"] > 1].groupby("bandwidth")["steps"].nunique()
    return float(several.idxmax())


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows at the middle bandwidth: every line, those that remember with the one T, and the
    controls at T times the batch."""
    steps = _steps(rows)
    at = rows[np.isclose(rows["bandwidth"], middle(rows))]
    return at[at["steps"].isin((1, steps)) & at["times"].isin((1, steps))]


def overall(rows: pd.DataFrame, column: str, *by: str) -> pd.Series:
    """Means over buckets, weighted by their latents; buckets without a value are left out."""
    known = rows[np.isfinite(rows[column])]
    known = known.assign(weighted=known[column] * known["latents"])
    sums = known.groupby(list(by))[["weighted", "latents"]].sum()
    return sums["weighted"] / sums["latents"]


def text(table: pd.DataFrame, digits: int = 2) -> str:
    """A table of numbers in an answer."""
    number = f"{{:.{digits}g}}".format
    shown = table.to_string(float_format=number, na_rep="-", index_names=False)
    return "\n".join("    " + each for each in shown.splitlines())


def _by_bucket(rows: pd.DataFrame, column: str) -> str:
    """A table in text: names down, buckets of log10 frequency across."""
    order = list(dict.fromkeys(rows.sort_values("frequency")["bucket"]))
    wide = rows.pivot_table(index="name", columns="bucket", values=column, sort=False)
    wide = wide.reindex(columns=[bucket for bucket in order if bucket in wide])
    return text(wide.assign(all=overall(rows, column, "name")))


def described(noise: pd.DataFrame) -> str:
    """What was measured: by bucket late in training, and means over buckets of all the rest."""
    rows = relative(noise)
    last = rows[rows["train_tokens"] == rows["train_tokens"].max()]
    here, steps = compared(last), _steps(last)
    buckets = here.drop_duplicates("bucket").sort_values("frequency")
    said = [
        f"Gradients of thresholds at frozen weights, eps {middle(rows):g}, T = {steps}. Late "
        f"({last['train_tokens'].iloc[0]:,} tokens), by log10 of the firing frequency ("
        + ", ".join(f"{r.bucket}: {r.latents} latents" for r in buckets.itertuples())
        + "):"
    ]
    for column, title in MEASURES.items():
        said += [f"  {title}:", _by_bucket(here, column)]
    said.append("  Means over buckets, weighted by latents, at each stage:")
    said.append(_by_stage(rows))
    said.append("  Step ratio by T, late:")
    said.append(_by_memory(last))
    said.append("  Noise and |bias| in units of the slope by bandwidth, late:")
    said.append(_by_bandwidth(last))
    return "\n".join([*said, concluded(here, steps)])


def _steps(rows: pd.DataFrame) -> int:
    """The T at the other bandwidths, or the longest one if there are none."""
    known = rows[rows["steps"] > 1]
    return STEPS if STEPS in set(known["steps"]) else int(known["steps"].max())


def concluded(here: pd.DataFrame, steps: int) -> str:
    """Whether the window does better than its equals, in a sentence."""
    step, path, bias = (overall(here, column, "name") for column in MEASURES)
    error = overall(here.assign(error=here["bias_se"] / here["slope"]), "error", "name")
    control, exact = f"batch x {steps}", "batch, exact jump"
    return (
        f"  So a window over {steps} steps leaves {step['window']:.0%} of the batch estimate's "
        f"variance of a step (the mean of {steps} gradients {step['mean']:.0%}: at frozen weights "
        "the two are one estimator unless samples are thinned; momentum "
        f"{step['momentum']:.0%}, {steps} times the batch {step[control]:.0%}), but "
        f"{path['window']:.0%} of its integrated variance at equal tokens "
        f"(momentum {path['momentum']:.0%}; {steps} times the batch {path[control]:.0%} by "
        f"construction). |Bias| / slope: batch {bias['batch']:.2g}, window "
        f"{bias['window']:.2g}, persistent bandwidth {bias['persistent bandwidth']:.2g} (standard "
        f"error about {error['batch']:.1g}). Exact jumps, which need no state, leave "
        f"{step[exact]:.0%} of a step's and {path[exact]:.0%} of the integrated variance, at "
        f"|bias| / slope {bias[exact]:.2g}."
    )


def _by_stage(rows: pd.DataFrame) -> str:
    columns = {}
    for word, column in zip(("step", "integrated", "|bias|"), MEASURES, strict=True):
        for tokens, part in rows.groupby("train_tokens"):
            columns[f"{word} {tokens // 1000}k"] = overall(compared(part), column, "name")
    return text(pd.DataFrame(columns).reindex(list(dict.fromkeys(compared(rows)["name"]))))


def _by_memory(last: pd.DataFrame) -> str:
    at = last[np.isclose(last["bandwidth"], middle(last))]
    remembering, larger = at[at["steps"] > 1], at[at["times"] > 1]
    controls = larger.assign(steps=larger["times"], line=larger["line"] + " x T")
    every = overall(pd.concat([remembering, controls]), "step_ratio", "line", "steps").unstack()
    order = [name for each in LINES for name in (each, f"{each} x T") if name in every.index]
    return text(every.loc[order])


def _by_bandwidth(last: pd.DataFrame) -> str:
    alone = last[(last["times"] == 1) & last["steps"].isin((1, _steps(last)))]
    both = {
        word: overall(alone, column, "line", "bandwidth").unstack().add_prefix(f"{word}, eps ")
        for word, column in (("noise", "noise"), ("|bias|", "relative_bias"))
    }
    return text(pd.concat(both.values(), axis=1).reindex(list(LINES)))


# -- figures --------------------------------------------------------------------------------------


def by_frequency(noise: pd.DataFrame) -> Figure:
    """The `MEASURES` against firing frequency: a row a measure, a column a stage of training."""
    rows = relative(noise)
    stages = sorted(set(rows["train_tokens"]))
    figure = plots.figure(6.8, 5.4, len(MEASURES), len(stages))
    panels = np.array(figure.axes).reshape(len(MEASURES), len(stages))
    for tokens, column in zip(stages, panels.T, strict=True):
        part = rows[rows["train_tokens"] == tokens]
        here = compared(part)
        column[0].set_title(f"{tokens / 1000:.0f}k tokens", fontsize=8)
        for y, axes in zip(MEASURES, column, strict=True):
            _against_frequency(here, axes, y)
    names = ("step variance / batch's", "integrated / batch's", "|bias| / slope")
    for name, axes in zip(names, panels[:, 0], strict=True):
        axes.set_ylabel(name, fontsize=7)
    for axes in panels[-1]:
        axes.set_xlabel("firing frequency")
    return plots.legend_below(figure, panels[0, -1])


def _against_frequency(here: pd.DataFrame, axes: Axes, y: str) -> None:
    for name, rows in here.groupby("name", sort=False):
        shown = rows[(rows["frequency"] > 0) & (rows[y] > 0)].sort_values("frequency")
        alone = (rows["times"] == 1).all()
        drawn = look(str(name)) if alone else CONTROL
        if alone or name == f"batch x {rows['times'].iloc[0]}":
            axes.plot(shown["frequency"], shown[y], label=name, **drawn)
    loglog(axes)


CONTROL = {
    "color": bands.COLOURS[len(STATES)],
    "marker": bands.MARKERS[len(STATES)],
    "linestyle": ":",
    "markersize": 3.2,
    "linewidth": 1.0,
}


def against_bias(noise: pd.DataFrame) -> Figure:
    """Noise of a step against bias late in training, in units of the slope, means over buckets: a
    line an estimator, a marker a bandwidth."""
    rows = relative(noise)
    last = rows[rows["train_tokens"] == rows["train_tokens"].max()]
    alone = last[(last["times"] == 1) & last["steps"].isin((1, _steps(last)))]
    places = pd.DataFrame(
        {y: overall(alone, y, "line", "bandwidth") for y in ("relative_bias", "noise")}
    )
    figure = plots.figure(3.4, 3.8)
    (axes,) = figure.axes
    for name in LINES:
        if name in places.index:
            part = places.loc[name]
            axes.plot(part["relative_bias"], part["noise"], label=name, **look(name))
    axes.set(xlabel="|bias| / slope", ylabel="noise of a step / slope")
    loglog(axes)
    return plots.legend_below(figure, axes)


def loglog(axes: Axes) -> None:
    """Logarithmic axes, plain numbers on y, a grid."""
    bands.logarithmic(axes)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, linewidth=0.5)
