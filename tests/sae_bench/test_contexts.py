from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.components import from_record
from sae_bench.contexts import (
    INSERTED,
    Context,
    ContextPolicy,
    Packed,
    PerDocument,
    Settled,
    VariableLength,
    ordinary,
    padded_batches,
)
from sae_bench.errors import InputError

BOS, EOS, PAD = 1001, 1002, 1003

corpora = st.lists(st.integers(0, 40), max_size=12).map(
    lambda lengths: [
        (10 + 3 * number, [100 * number % 1000 + i for i in range(length)])
        for number, length in enumerate(lengths)
    ]
)
bos_tokens = st.sampled_from([BOS, None])
separators = st.sampled_from([EOS, None])
per_document = st.one_of(
    st.builds(PerDocument, length=st.integers(3, 20)),
    st.builds(
        VariableLength, low=st.integers(3, 6), high=st.integers(6, 20), seed=st.integers(0, 9)
    ),
)


def joined(contexts, bos):
    """The (document, token) pairs of all contexts, without the BOS of each."""
    skip = 0 if bos is None else 1
    rows = [zip(c.documents[skip:], c.ids[skip:], strict=True) for c in contexts]
    return [(int(document), int(token)) for row in rows for document, token in row]


@given(corpora, st.integers(2, 20), bos_tokens, separators)
def test_packed_holds_every_token_in_order_up_to_the_tail(corpus, length, bos, separator):
    contexts = list(Packed(length).contexts(corpus, bos, separator))
    expected = []
    for index, tokens in (pair for pair in corpus if pair[1]):
        expected += [(INSERTED, separator)] if expected and separator is not None else []
        expected += [(index, token) for token in tokens]
    room = length - (bos is not None)
    assert joined(contexts, bos) == expected[: len(expected) // room * room]
    for context in contexts:
        assert len(context.ids) == length
        assert bos is None or (context.ids[0], context.documents[0]) == (bos, INSERTED)


@given(corpora, per_document, bos_tokens)
def test_documents_are_cut_without_loss_and_never_mixed(corpus, policy, bos):
    contexts = list(policy.contexts(corpus, bos, EOS))
    kept = joined(contexts, bos)
    for index, tokens in corpus:
        mine = [token for document, token in kept if document == index]
        dropped = len(tokens) - len(mine)
        assert mine == tokens[: len(mine)]
        assert 0 <= dropped <= 1  # a single last token predicts nothing
    assert [document for document, _ in kept] == sorted(document for document, _ in kept)
    high = policy.length if isinstance(policy, PerDocument) else policy.high
    for context in contexts:
        real = context.documents[context.documents != INSERTED]
        assert len(set(real.tolist())) == 1
        assert len(real) >= 2
        assert len(context.ids) == len(real) + (bos is not None) <= high
        assert bos is None or (context.ids[0], context.documents[0]) == (bos, INSERTED)


def test_per_document_by_hand():
    policy = PerDocument(length=4)
    cut = [
        c.ids.tolist() for c in policy.contexts([(0, [1, 2, 3, 4, 5]), (1, [6, 7, 8, 9])], 0, 99)
    ]
    assert cut == [[0, 1, 2, 3], [0, 4, 5], [0, 6, 7, 8]]


def test_packed_by_hand():
    documents = [(5, [1, 2, 3]), (6, []), (7, np.array([4, 5], dtype=np.int32))]
    contexts = list(Packed(length=3).contexts(documents, 0, 99))
    assert [c.ids.tolist() for c in contexts] == [[0, 1, 2], [0, 3, 99], [0, 4, 5]]
    assert [c.documents.tolist() for c in contexts] == [[-1, 5, 5], [-1, 5, -1], [-1, 7, 7]]
    assert all(c.ids.dtype == c.documents.dtype == np.int64 for c in contexts)


@pytest.mark.parametrize("policy", [Packed(8), PerDocument(8), VariableLength(3, 8)])
def test_contexts_are_made_as_they_are_asked_for(policy):
    def endless():
        index = 0
        while True:
            yield index, list(range(20))
            index += 1

    assert len(list(islice(policy.contexts(endless(), BOS, EOS), 30))) == 30


def test_lengths_are_log_uniform():
    policy = VariableLength(low=16, high=1024)
    lengths = np.array(list(islice(policy.lengths(0), 40_000)))
    assert lengths.min() == 16
    assert lengths.max() >= 1000
    assert lengths.max() <= 1024
    for n in (16, 32, 64, 256, 700):  # P(length < n) = log(n/low) / log((high+1)/low)
        expected = np.log(n / 16) / np.log(1025 / 16)
        assert abs((lengths < n).mean() - expected) < 4 * 0.5 / np.sqrt(len(lengths))
    assert set(islice(VariableLength(3, 3).lengths(0), 50)) == {3}
    few = np.array(list(islice(VariableLength(3, 4).lengths(0), 20_000)))
    assert abs((few == 4).mean() - np.log(5 / 4) / np.log(5 / 3)) < 4 * 0.5 / np.sqrt(len(few))


def test_draws_depend_on_seed_and_document_alone():
    policy = VariableLength(low=3, high=50, seed=1)
    tokens = list(range(500))

    def cut(policy, documents):
        return [c.ids.tolist() for c in policy.contexts(documents, BOS, None) if 7 in c.documents]

    alone = cut(policy, [(7, tokens)])
    assert alone == cut(policy, [(3, tokens), (7, tokens), (8, tokens)])
    assert alone != cut(policy.replace(seed=2), [(7, tokens)])
    first = list(islice(policy.lengths(7), 20))
    assert first != list(islice(policy.lengths(8), 20))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Packed(1),
        lambda: PerDocument(2),
        lambda: VariableLength(low=2),
        lambda: VariableLength(low=20, high=19),
        lambda: VariableLength(seed=-1),
        lambda: Settled(Packed(8), 0),
    ],
)
def test_impossible_lengths_are_refused(make):
    with pytest.raises(InputError, match="must be a whole number, at least"):
        make()


@pytest.mark.parametrize(
    "policy",
    [Packed(64), PerDocument(64), VariableLength(3, 64, seed=5), Settled(PerDocument(64), 4)],
)
def test_records_come_back_equal(policy):
    assert from_record(ContextPolicy, policy.record()) == policy


def test_only_ordinary_tokens_of_documents_count():
    ids, documents = np.array([0, 5, 6, 7, 2]), np.array([INSERTED, 3, INSERTED, 4, 4])
    context = Context(ids, documents)
    assert ordinary(context, {0, 2}).tolist() == [False, True, False, True, False]
    assert ordinary(context, ()).tolist() == [False, True, False, True, True]
    short = Context(ids[:2], documents[:2])
    (batch,) = padded_batches([context, short], 10, PAD)
    assert ordinary(batch, {0, 2}).tolist() == [
        [False, True, False, False, False],  # the short one, padded
        [False, True, False, True, False],
    ]


@given(corpora, st.integers(1, 25), bos_tokens, st.one_of(per_document, st.builds(Packed)))
def test_the_first_positions_are_read_and_do_not_count(corpus, first, bos, policy):
    special = {BOS, EOS}
    whole = list(policy.contexts(corpus, bos, EOS))
    settled = list(Settled(policy, first).contexts(corpus, bos, EOS))
    for one, other in zip(whole, settled, strict=True):
        assert (one.ids == other.ids).all()
        assert not ordinary(other, special)[:first].any()
        assert (ordinary(other, special)[first:] == ordinary(one, special)[first:]).all()
        assert (other.documents[first:] == one.documents[first:]).all()


def contexts_of(lengths):
    return [
        Context(np.full(n, number, dtype=np.int64), np.full(n, number, dtype=np.int64))
        for number, n in enumerate(lengths)
    ]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 100), st.integers(1, 10))
def test_batches_hold_every_context_once_within_the_budget(lengths, tokens, window):
    contexts = contexts_of(lengths)
    batches = list(padded_batches(contexts, tokens, PAD, window))
    seen = []
    for batch in batches:
        assert batch.ids.size <= tokens or len(batch.ids) == 1
        assert (batch.mask.any(axis=0)).all()  # no column of padding alone
        assert (batch.ids[~batch.mask] == PAD).all()
        assert (batch.documents[~batch.mask] == INSERTED).all()
        for ids, mask, documents in zip(batch.ids, batch.mask, batch.documents, strict=True):
            n = int(mask.sum())
            assert mask[:n].all()  # padding is on the right
            assert (documents[:n] == ids[:n]).all()
            assert n == lengths[ids[0]]
            seen.append(int(ids[0]))
    runs = [range(start, len(lengths))[:window] for start in range(0, len(lengths), window)]
    assert seen == [number for run in runs for number in sorted(run, key=lambda i: lengths[i])]


def test_sorting_saves_padding():
    lengths = [3, 30] * 32
    padded = sum(b.ids.size for b in padded_batches(contexts_of(lengths), 120, PAD))
    assert padded == sum(lengths)


@pytest.mark.parametrize(("tokens", "window"), [(0, 64), (64, 0)])
def test_impossible_batches_are_refused(tokens, window):
    with pytest.raises(InputError, match="at least 1"):
        next(padded_batches(contexts_of([3]), tokens, PAD, window))
