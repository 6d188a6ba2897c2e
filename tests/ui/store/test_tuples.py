"""NamedTuples to JSON and back: what comes back is equal, and what does not fit is named."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_c2f.ui.store.tuples import as_row, decoded, encoded, from_row


class Inner(NamedTuple):
    text: str
    share: float | None


class Outer(NamedTuple):
    count: int
    inner: tuple[Inner, ...]
    by: dict[str, Inner]
    more: dict[str, Any]
    whole: bool = True


WHOLE = Outer(3, (Inner("a", 0.5), Inner("", None)), {"x": Inner("b", 2.0)}, {"list": [1, None]}, False)
ROW = {
    "count": 3,
    "inner": [{"text": "a", "share": 0.5}, {"text": "", "share": None}],
    "by": {"x": {"text": "b", "share": 2.0}},
    "more": {"list": [1, None]},
    "whole": False,
}


def test_there_and_back():
    assert as_row(WHOLE) == ROW and from_row(Outer, ROW) == WHOLE
    assert from_row(Outer, {name: ROW[name] for name in ROW if name != "whole"}) == WHOLE._replace(whole=True)
    found = from_row(Inner, {"text": "a", "share": 1})
    assert found == Inner("a", 1.0) and type(found.share) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "outer.count is not a whole number"),
        ({"count": 3.0}, "outer.count is not a whole number"),
        ({"count": None}, "outer.count is not a whole number"),
        ({"whole": 1}, "outer.whole is not true or false"),
        ({"inner": {}}, "outer.inner is not a list"),
        ({"inner": [[]]}, r"outer.inner\[0\] is not an object"),
        ({"inner": [{"text": "a"}]}, r"outer.inner\[0\] has no 'share'"),
        ({"by": {"x": {"text": 1, "share": 1}}}, "outer.by.x.text is not a text"),
        ({"by": {"x": {"text": "", "share": True}}}, "outer.by.x.share is not a finite number"),
        ({"by": {"x": {"text": "", "share": 10**400}}}, "outer.by.x.share is not a finite number"),
        ({"by": {"x": {"text": "", "share": float("nan")}}}, "outer.by.x.share is not a finite number"),
        ({"more": []}, "outer.more is not an object"),
        ({"y": 1}, "outer has 'y', which is unknown"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        from_row(Outer, ROW | change)


def test_the_text_is_json_and_can_be_written():
    assert encoded(Inner("ü\u2028\ud800", 0.5)) == '{"text": "ü\u2028?", "share": 0.5}'
    with pytest.raises(ValueError):
        encoded(Inner("", float("inf")))
    for text in ("NaN", "[1e999]", "-Infinity", "{", "", "[" * 100_000):
        with pytest.raises(ValueError):
            decoded(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "share", "count", "inner", "by", "more"]), inner, max_size=6)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(JSON)
def test_any_json_is_taken_or_refused(row):
    try:
        found = from_row(Outer, row)
    except ValueError:
        return
    assert from_row(Outer, as_row(found)) == found
