"""Pages and their keys."""

import random

import pytest
import torch

from vila_core.engine import memory
from vila_core.engine.limits import EngineConfig
from vila_core.engine.pages import PagePool, pages_of
from vila_core.engine.prefix import MediaSpan, PageKeys
from vila_core.errors import GenerationError
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE


def test_pages_of_tokens() -> None:
    assert [pages_of(n) for n in (0, 1, PAGE_SIZE, PAGE_SIZE + 1)] == [0, 1, 1, 2]


def test_consecutive_pages_where_possible() -> None:
    pool = PagePool(8)
    assert pool.take(3) == [0, 1, 2]
    assert pool.take(1) == [3]
    assert pool.take(1, after=2) == [4]
    pool.release([3])
    assert pool.take(1, after=2) == [3]
    assert pool.take(4) is None
    assert pool.take(3, after=3) == [5, 6, 7]


def test_kept_pages_are_found_until_the_space_is_needed() -> None:
    pool = PagePool(4)
    taken = pool.take(3)
    assert taken is not None
    for page, key in zip(taken, (b"a", b"b", b"c"), strict=True):
        pool.keep(page, key)
    pool.release(taken)
    assert (pool.num_used, pool.num_kept, pool.num_available) == (0, 3, 4)
    assert pool.find([b"a", b"b", b"x"]) == taken[:2]
    assert (pool.num_used, pool.num_kept) == (2, 1)
    assert pool.take(2) is not None  # the free one, and that of c
    assert pool.find([b"c"]) == []
    assert pool.take(1) is None
    pool.release(taken[:2])
    assert pool.take(1) == [taken[1]]  # the later page of a prompt goes first
    assert pool.find([b"a"]) == [taken[0]]


def test_a_page_has_several_users() -> None:
    pool = PagePool(2)
    (page,) = pool.take(1) or []
    pool.keep(page, b"a")
    assert pool.find([b"a"]) == [page]
    pool.release([page])
    assert (pool.num_used, pool.num_kept) == (1, 0)
    pool.release([page])
    assert (pool.num_used, pool.num_kept) == (0, 1)
    pool.clear()
    assert (pool.num_kept, pool.find([b"a"])) == (0, [])


def test_the_same_content_is_remembered_once() -> None:
    pool = PagePool(2)
    first, second = pool.take(2) or []
    pool.keep(first, b"a")
    pool.keep(second, b"a")
    pool.release([first])
    pool.release([second])
    assert (pool.num_kept, pool.num_available) == (1, 2)
    assert pool.find([b"a"]) == [first]


@pytest.mark.parametrize("seed", range(5))
def test_no_page_is_lost_or_given_twice(seed: int) -> None:
    chance, pool, held = random.Random(seed), PagePool(17), list[list[int]]()
    for turn in range(2000):
        if chance.random() < 0.5:
            found = pool.find([bytes([chance.randrange(30)])])
            taken = pool.take(chance.randint(0, 5), chance.choice([None, 3, 16]))
            assert (taken is None) == (taken is None and pool.num_available < 5)
            for page in taken or []:
                if chance.random() < 0.5:
                    pool.keep(page, bytes([chance.randrange(30)]))
            held.append([*found, *(taken or [])])
        elif held:
            pool.release(held.pop(chance.randrange(len(held))))
        users = [page for pages in held for page in pages]
        assert pool.num_used == len(set(users))
        assert pool.num_available == 17 - pool.num_used, turn
    for pages in held:
        pool.release(pages)
    assert pool.num_available == 17


def keys(ids: list[int], *media: MediaSpan) -> list[bytes]:
    return PageKeys(ids, media).keys


def test_keys_are_equal_exactly_for_equal_beginnings() -> None:
    ids = list(range(200))
    assert len(keys(ids)) == 3
    assert keys(ids) == keys([*ids, 7])
    other = [*ids]
    other[70] = 5
    assert [a == b for a, b in zip(keys(ids), keys(other), strict=True)] == [True, False, False]
    assert len(set(keys([1] * 200))) == 3  # a page's key depends on what is before it


def test_a_growing_answer_has_the_keys_of_the_whole() -> None:
    ids = [(7 * n) % 300 for n in range(300)]
    growing = PageKeys(ids[:10])
    for token_id in ids[10:]:
        growing.push(token_id)
    assert growing.keys == keys(ids)


def test_media_are_part_of_the_keys() -> None:
    ids, a, b = [0] * 200, b"a" * 20, b"b" * 20
    variants = [
        keys(ids),
        keys(ids, MediaSpan(range(5, 80), a)),
        keys(ids, MediaSpan(range(5, 80), b)),
        keys(ids, MediaSpan(range(6, 81), a)),
        keys(ids, MediaSpan(range(5, 80), a), MediaSpan(range(80, 90), b)),
        keys(ids, MediaSpan(range(5, 40), a), MediaSpan(range(40, 80), a)),
        keys(ids, MediaSpan([*range(5, 40), *range(41, 81)], a)),
    ]
    assert len({variant[-1] for variant in variants}) == len(variants)
    assert variants[1][0] == variants[4][0]
    assert keys([9] * 200, MediaSpan(range(200), a)) == keys([3] * 200, MediaSpan(range(200), a))


def test_how_many_pages_are_allocated(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    page = memory.page_bytes(decoder, EngineConfig())
    assert page == 2 * 2 * 2 * 12 * PAGE_SIZE * 4  # keys and values, layers, heads, width, tokens, bytes
    context = pages_of(decoder.config.max_length)
    for free, expected in ((10**12, 64 * context), (40 * page, 10), (page, 1)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert memory.num_pages(decoder, EngineConfig()) == expected
    monkeypatch.setattr(memory, "free_bytes", lambda device: page - 1)
    with pytest.raises(GenerationError, match="too little memory for a KV cache of 64 tokens"):
        memory.num_pages(decoder, EngineConfig())
    monkeypatch.setattr(memory, "HOST_SPARE_BYTES", 3 * page)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**12)
    assert memory.num_pages(decoder, EngineConfig()) == context + 3
    assert memory.num_pages(decoder, EngineConfig(cache_bytes=7 * page)) == 7
    assert memory.num_pages(decoder, EngineConfig(cache_bytes=10**12, max_batch=2)) == 2 * context


def test_free_memory_is_known() -> None:
    assert 1 << 20 < memory.free_bytes(torch.device("cpu")) < 1 << 50
