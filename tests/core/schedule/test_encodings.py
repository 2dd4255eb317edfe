from mlx_serving.core.schedule.encodings import NO_ENCODINGS, ImageSpan


def test_where_nothing_is_kept_nothing_can_be_claimed() -> None:
    assert not NO_ENCODINGS.claim("a", 0)


def test_an_image_has_as_many_tokens_as_its_span() -> None:
    assert ImageSpan(3, 10).tokens == 7
