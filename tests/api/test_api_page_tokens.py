"""Page tokens: a list may continue at another server, or at the same one after a restart."""

from __future__ import annotations

from staddle_server.api.page_tokens import PageTokens


def test_a_token_fits_an_equal_query_whose_sets_are_iterated_over_in_another_order() -> None:
    made, read = frozenset([0, 8]), frozenset([8, 0])
    assert made == read
    assert list(made) != list(read), "they are to stand for sets of texts in two processes"
    tokens = PageTokens(bytes(32))
    assert tokens.read(("q", read), tokens.make(("q", made), 7), int) == 7
