"""The stream of epochs, against its definition written down in full."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.order import Epochs
from sae_bench.permutation import Permutation


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5), st.integers(0, 4), st.data())
def test_epochs_visit_whole_blocks_in_the_order_of_a_permutation(
    blocks: int, block: int, seed: int, left: int, data: st.DataObject
) -> None:
    order = Epochs(blocks * block + min(left, block - 1), block, seed)
    assert order.usable == blocks * block
    whole = [
        row
        for epoch in range(3)
        for chosen in Permutation(blocks, (seed, epoch))(np.arange(blocks))
        for row in range(chosen * block, (chosen + 1) * block)
    ]
    positions = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20))
    asked = np.array(positions, dtype=np.int64)
    before = asked.copy()
    assert order(asked).tolist() == [whole[each] for each in positions]
    assert (asked == before).all()
