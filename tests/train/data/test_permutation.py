"""The pseudo-random order of samples."""

import pytest

from vila_train.data.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 64, 65, 255, 257, 1000, 4096, 4097])
@pytest.mark.parametrize("key", [(0, 0), (1, 0), (2**63, 12, 7)])
def test_is_a_bijection(size: int, key: tuple[int, ...]):
    assert sorted(Permutation(size, key)) == list(range(size))


def test_depends_on_every_part_of_the_key():
    orders = {tuple(Permutation(50, key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0)]}
    assert len(orders) == 5


def test_is_the_same_everywhere():
    assert list(Permutation(10, (42, 0))) == [5, 6, 3, 0, 4, 9, 7, 8, 2, 1]


def test_reaches_far_and_moves_almost_everything():
    order = list(Permutation(10_000, (7, 7)))
    assert sum(place == value for place, value in enumerate(order)) < 10
    distance = sum(abs(place - value) for place, value in enumerate(order)) / 10_000
    assert 0.9 < distance / (10_000 / 3) < 1.1, "a random permutation moves by a third of its size on average"


def test_needs_no_memory_for_billions():
    huge = Permutation(10**12, (1,))
    values = {huge[position] for position in range(1000)}
    assert len(values) == 1000
    assert all(0 <= value < 10**12 for value in values)


@pytest.mark.parametrize("position", [-1, 10, 11])
def test_position_out_of_range(position: int):
    with pytest.raises(IndexError):
        Permutation(10, (0,))[position]
