"""Which firings need a long context: the same tokens again, with less text before them.

Tokens are drawn at positions of at least `middle` in the longest evaluation contexts, such that the
`middle` tokens that end there are of one document. The language model reads each of them four
times; lengths count tokens, the BOS among them, as in `Packed`:

    whole     all of the context up to the token
    middle    BOS and the last middle - 1 tokens
    short     BOS and the last short - 1 tokens
    foreign   as long as the whole: BOS, the beginning of a context of other documents, the
              separator of documents, and the last short - 1 tokens

A firing vanishes if the latent is on after the longer text and not after the shorter one, and
appears if it is the other way round:

    cut          longer     shorter
    short        whole      short      what contexts of this length do not elicit
    middle       whole      middle     the same of longer ones: the dose
    control      foreign    short      the token's own distant text was not there to begin with

The control. Latents near their thresholds flicker under any change, rare ones most, and a cut also
moves the BOS nearer. Cutting `foreign` down to `short` changes the length, the position and the
distance of the BOS alike, before the same tokens, with the same text before them and nearly the
same latents on (so frequencies match by construction); only what is cut away had nothing to do with
the token. What more vanishes by `short` than by `control` was elicited by the token's own distant
text. The control errs on the cautious side: latents that the foreign text elicits vanish with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_bench.ablation import Finished
from sae_bench.cache import ActivationCache
from sae_bench.contexts import INSERTED, Context, padded_batches
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.sites import Site, capture, resolve_site
from sae_bench.stats import sums_by

TOKENS = 256
"""Tokens drawn."""
NEAR = 32
"""Of each line and seed, the arm whose L0 is nearest to this (by ratio) is looked at."""
ENOUGH = 8
"""Firings below which a latent is not counted as lost or kept."""
CLASSES = (1e-3, 1e-2, 1e-1, 1.0)
"""Upper ends of the classes of firing frequency, open below."""
CONTROL = "control"
BATCH = 4096


@dataclass(frozen=True, eq=False)
class Readings:
    """Activations of the same tokens after four texts, and the document of each token."""

    whole: Float[Tensor, "tokens d_in"]
    middle: Float[Tensor, "tokens d_in"]
    short: Float[Tensor, "tokens d_in"]
    foreign: Float[Tensor, "tokens d_in"]
    documents: Int[np.ndarray, " tokens"]


def reach(documents: Int[np.ndarray, " length"]) -> Int[np.ndarray, " length"]:
    """How many tokens of one document end at each position, the token itself among them."""
    place = np.arange(len(documents))
    begins = np.append(True, documents[1:] != documents[:-1])
    return place - np.maximum.accumulate(np.where(begins, place, 0)) + 1


def drawn(cache: ActivationCache, least: int, seed: int = 0) -> Int[np.ndarray, " tokens"]:
    """Rows of a cache at positions of at least `least` where as many tokens of one document end:
    `TOKENS` of them or all."""
    columns = cache.columns()
    reaches = [reach(context.documents) for context in cache.contexts()]
    far = [reaches[c][p] for c, p in zip(columns.context, columns.position, strict=True)]
    rows = np.flatnonzero((columns.position >= least) & (np.array(far) >= least))
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(rows, min(TOKENS, len(rows)), replace=False))


def foreign_to(contexts: Sequence[Context], index: int) -> Context:
    """The first context from half the text away that shares no document with context `index`.

    Raises:
        InputError: there is none.
    """
    mine = set(contexts[index].documents) - {INSERTED}
    for step in range(len(contexts)):
        other = contexts[(index + len(contexts) // 2 + step) % len(contexts)]
        if not mine & set(other.documents):
            return other
    raise InputError("vanishing: no evaluation context without this one's documents; more text")


@lru_cache(maxsize=1)  # the parts of a run look at the same tokens
def readings(cache: ActivationCache, short: int, middle: int) -> Readings | None:
    """The tokens drawn from an evaluation cache, read four times; None without a model.

    Args:
        cache: of the longest contexts, all full.
        short, middle: lengths of context, the BOS among them.
    """
    if cache.site is None or (lm := cache.language_model()) is None:
        return None
    rows, columns, contexts = drawn(cache, middle), cache.columns(), list(cache.contexts())
    bos = np.array([] if lm.bos_id is None else [lm.bos_id], dtype=np.int64)
    between = np.array([] if lm.eos_id is None else [lm.eos_id], dtype=np.int64)
    texts: dict[str, list[np.ndarray]] = {"middle": [], "short": [], "foreign": []}
    for index, position in zip(columns.context[rows], columns.position[rows], strict=True):
        whole = contexts[index].ids[: position + 1]
        for name, length in (("middle", middle), ("short", short)):
            texts[name].append(np.concatenate([bos, whole[len(whole) - length + len(bos) :]]))
        other = foreign_to(contexts, int(index)).ids[: len(whole) - short + len(bos) - len(between)]
        texts["foreign"].append(np.concatenate([other, between, texts["short"][-1][len(bos) :]]))
    site = resolve_site(lm, cache.site)
    read = {name: last_activations(lm, site, each) for name, each in texts.items()}
    whole_rows = torch.cat(list(cache.chunks(2048)))[torch.from_numpy(rows)].cpu()
    return Readings(whole_rows, **read, documents=columns.document[rows])


def last_activations(
    lm: LanguageModel, site: Site, texts: Sequence[Int[np.ndarray, " _"]]
) -> Float[Tensor, "texts d_in"]:
    """The activation at the last token of each text."""
    found = torch.empty(len(texts), site.d_in)
    numbered = [Context(ids, np.full(len(ids), number)) for number, ids in enumerate(texts)]
    for batch in padded_batches(numbered, BATCH, lm.pad_id, len(texts) or 1):
        ids, mask = (torch.from_numpy(each).to(lm.device) for each in (batch.ids, batch.mask))
        values = capture(lm, ids, mask, [site])[site.name]
        every, last = np.arange(len(batch.ids)), batch.mask.sum(1) - 1
        found[batch.documents[every, last]] = values[every, last].float().cpu()
    return found


def nearest(finished: Finished, name: str) -> pd.DataFrame:
    """Of each line and seed, the row on evaluation set `name` whose L0 is nearest to `NEAR`."""
    rows = finished.table[(finished.table["eval_set"] == name) & (finished.table["l0"] > 0)]
    miss = np.log(rows["l0"] / NEAR).abs()
    return rows.loc[miss.groupby([rows["architecture"], rows["seed"]]).idxmin()]


@dataclass(frozen=True, eq=False)
class Cut:
    """Which latents of one SAE are on after the longer text and after the shorter one."""

    longer: Bool[Tensor, "tokens d_sae"]
    shorter: Bool[Tensor, "tokens d_sae"]

    @property
    def vanished(self) -> Bool[Tensor, "tokens d_sae"]:
        """On after the longer text alone."""
        return self.longer & ~self.shorter

    @property
    def appeared(self) -> Bool[Tensor, "tokens d_sae"]:
        """On after the shorter text alone."""
        return self.shorter & ~self.longer

    def by_document(self, documents: Int[np.ndarray, " tokens"]) -> pd.DataFrame:
        """Columns document, firings, vanished, appeared: sums over a document's tokens."""
        parts = {"firings": self.longer, "vanished": self.vanished, "appeared": self.appeared}
        sums = sums_by(documents, *(each.sum(1).numpy() for each in parts.values()))
        counts = {name: each.astype(int) for name, each in zip(parts, sums, strict=True)}
        return pd.DataFrame({"document": np.unique(documents), **counts})

    def by_frequency(self, frequency: Float[np.ndarray, " d_sae"]) -> pd.DataFrame:
        """Columns frequency (upper end of a class), firings, vanished, and of the latents with at
        least `ENOUGH` firings latents (how many) and lost (of how many more than half vanish)."""
        firings, vanished = (each.sum(0).numpy() for each in (self.longer, self.vanished))
        counted = firings >= ENOUGH
        known = {
            "firings": firings,
            "vanished": vanished,
            "latents": counted,
            "lost": counted & (2 * vanished > firings),
        }
        index = np.searchsorted(CLASSES, frequency)
        sums = {name: np.bincount(index, each, len(CLASSES)) for name, each in known.items()}
        return pd.DataFrame({"frequency": CLASSES, **{n: s.astype(int) for n, s in sums.items()}})


@torch.no_grad()
def _cuts(finished: Finished) -> Iterator[tuple[str, str, Cut, Readings]]:
    """Arm, name of the cut, the cut itself and what was read."""
    short, middle, name = finished.evaluation
    found = readings(finished.evaluation[name], int(short), int(middle))
    if found is None:
        return
    for arm in nearest(finished, name)["arm"]:
        sae = finished.sae(arm)
        texts = {"whole": found.whole, "middle": found.middle, "short": found.short}
        on = {key: sae.encode(x) > 0 for key, x in (texts | {"foreign": found.foreign}).items()}
        yield arm, short, Cut(on["whole"], on["short"]), found
        yield arm, middle, Cut(on["whole"], on["middle"]), found
        yield arm, CONTROL, Cut(on["foreign"], on["short"]), found


def vanishing(finished: Finished) -> pd.DataFrame:
    """Columns arm, cut, document, firings, vanished, appeared; nothing without a model.

    The evaluation sets are those of the short, the middle and the long contexts, named by their
    lengths."""
    rows = [
        cut.by_document(found.documents).assign(arm=arm, cut=name)
        for arm, name, cut, found in _cuts(finished)
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def latents(finished: Finished) -> pd.DataFrame:
    """Columns arm, cut, frequency (on the long contexts), firings, vanished, latents, lost."""
    name = list(finished.evaluation)[-1]
    stored = pd.read_parquet(finished.folder / "frequencies.parquet")
    known = stored[stored["eval_set"] == name].set_index("arm")["frequency"]
    rows = [
        cut.by_frequency(np.asarray(known[arm])).assign(arm=arm, cut=cut_name)
        for arm, cut_name, cut, _ in _cuts(finished)
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
