"""Statistics of a series of gradients whose steps may remember each other."""

import numpy as np
from jaxtyping import Float, Int


def integrated_variance(
    means: Float[np.ndarray, "halves latents"], length: int
) -> Float[np.ndarray, " latents"]:
    """sum over all lags of the autocovariance: what n times the variance of a mean over n steps
    tends to, and so what an optimiser feels that takes many small steps.

    By batch means: with V_b = b Var(mean of b consecutive steps), the estimate is 2 V_b - V_(b/2)
    for b = 2 `length`. A single V_b misses the lags' tails by 2/b sum k gamma_k; the difference is
    free of that bias, and exact where the memory is no longer than b/2 ("lugsail" batch means,
    Vats and Flegal, Biometrika 109, 2022). Unbiased estimates may be negative: pool latents.

    Args:
        means: of consecutive half-blocks of `length` steps; at least four.
    """
    halves = means[: len(means) // 2 * 2]
    blocks = halves.reshape(-1, 2, halves.shape[1]).mean(1)
    wide = 2 * length * blocks.var(0, ddof=1)
    return 2 * wide - length * halves.var(0, ddof=1)


class Series:
    """Running statistics of one estimator's gradients, one row a step of `pooled` batches each.

    A step of several batches is their mean: at frozen weights, what the batch estimator gives on
    all of them at once. Memory: seven float64 a latent, and two for each half-block.
    """

    def __init__(self, row: int, pooled: int, block: int, d_sae: int) -> None:
        self.row, self.pooled = row, pooled
        self.half = max(1, block // (2 * pooled))
        self.steps = 0
        self._batches = 0
        self._pool = np.zeros((3, d_sae))
        self._sums = np.zeros((4, d_sae))
        self._halves: list[Float[np.ndarray, "2 d_sae"]] = []
        self._open = np.zeros((2, d_sae))  # sums of gradient and reference since the last of them

    def add(
        self,
        gradients: Float[np.ndarray, "estimators d_sae"],
        inside: Float[np.ndarray, "estimators d_sae"],
    ) -> None:
        """The next batch; row 0 of `gradients` is the reference."""
        self._pool += np.stack([gradients[self.row], gradients[0], inside[self.row]])
        self._batches += 1
        if self._batches % self.pooled:
            return
        gradient, truth = self._pool[:2] / self.pooled
        self._sums += np.stack([gradient, gradient**2, gradient != 0, self._pool[2]])
        self._open += np.stack([gradient, truth])
        self._pool[:] = 0
        self.steps += 1
        if self.steps % self.half == 0:
            self._halves.append(self._open / self.half)
            self._open = np.zeros_like(self._open)

    def mean(self) -> Float[np.ndarray, "4 d_sae"]:
        """Means over steps of gradient, squared gradient, hit, and samples inside."""
        return self._sums / self.steps

    def variance(self) -> Float[np.ndarray, " d_sae"]:
        """Of a single step's gradient."""
        gradient, square, *_ = self.mean()
        return (square - gradient**2).clip(min=0) * self.steps / (self.steps - 1)

    def integrated(self) -> Float[np.ndarray, " d_sae"]:
        """The integrated variance, per step."""
        return integrated_variance(np.stack(self._halves)[:, 0], self.half)

    def blocks(self, latents: Int[np.ndarray, " some"]) -> Float[np.ndarray, "2 blocks"]:
        """Gradient and reference, averaged over these latents, in each whole block."""
        halves = np.stack(self._halves[: len(self._halves) // 2 * 2])[:, :, latents].mean(2)
        return halves.reshape(-1, 2, 2).mean(1).T
