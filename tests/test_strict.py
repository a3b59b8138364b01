"""Each kind of configuration mistake has its message; plain() and build() are inverse."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from star_upstream import strict
from star_upstream.errors import StarError


@dataclass(frozen=True)
class Inner:
    rate: float
    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise StarError(f"steps: must be 1 or more, got {self.steps}")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner(0.5)
    maybe: Inner | None = None
    kind: Literal["a", "b", 3] = "a"
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[tuple[int, ...], ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    flag: bool = False
    number: int | float = 0
    free: Any = None


GOOD = {
    "name": "x",
    "inner": {"rate": 1, "steps": 2},
    "maybe": {"rate": 0.25},
    "kind": 3,
    "pair": [4, 5],
    "many": [[1, 2], []],
    "by_name": {"p": 1},
    "flag": True,
    "number": 2.5,
    "free": {"anything": [1]},
}


def test_builds_nested_values_and_goes_back():
    built = strict.build(Outer, GOOD)
    assert built == Outer(
        "x", Inner(1.0, 2), Inner(0.25, 1), 3, (4, 5.0), ((1, 2), ()), {"p": 1.0}, True, 2.5, {"anything": [1]}
    )
    assert isinstance(built.inner.rate, float) and isinstance(built.pair[1], float)
    assert strict.build(Outer, strict.plain(built)) == built
    assert strict.plain(built)["many"] == [[1, 2], []]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nmae": 1}, "o.nmae: unknown key; did you mean 'name'?"),
        ({"inner": {"rate": 1.0, "step": 2}}, "o.inner.step: unknown key; did you mean 'steps'?"),
        ({"inner": {}}, "o.inner.rate: missing"),
        ({"inner": 3}, "o.inner: expected keys with values, got 3"),
        ({"inner": {"rate": 1.0, "steps": 0}}, "o.inner.steps: must be 1 or more, got 0"),
        ({"maybe": {"rate": 1.0, "steps": 0}}, "o.maybe.steps: must be 1 or more, got 0"),
        ({"maybe": {"rat": 1.0}}, "o.maybe.rat: unknown key; did you mean 'rate'?"),
        ({"maybe": "no"}, "o.maybe: expected Inner or null, got 'no'"),
        ({"inner": {"rate": "1"}}, "o.inner.rate: expected float, got '1'"),
        ({"inner": {"rate": True}}, "o.inner.rate: expected float, got True"),
        ({"inner": {"rate": 1.0, "steps": 1.5}}, "o.inner.steps: expected int, got 1.5"),
        ({"flag": 1}, "o.flag: expected bool, got 1"),
        ({"name": None}, "o.name: expected str, got None"),
        ({"kind": "c"}, "o.kind: expected 'a' or 'b' or 3, got 'c'"),
        ({"pair": [1]}, "o.pair: expected [int, float], got [1]"),
        ({"many": [[1, "2"]]}, "o.many[0][1]: expected int, got '2'"),
        ({"many": 1}, "o.many: expected a list of a list of int, got 1"),
        ({"by_name": {"p": "q"}}, "o.by_name.p: expected float, got 'q'"),
        ({"number": "2"}, "o.number: expected int or float, got '2'"),
    ],
)
def test_messages_name_the_key_and_what_is_allowed(change, message):
    with pytest.raises(StarError) as error:
        strict.build(Outer, GOOD | change, "o")
    assert str(error.value).startswith(message)


def test_missing_and_not_a_mapping_at_the_top():
    with pytest.raises(StarError, match="^name: missing$"):
        strict.build(Outer, {})
    with pytest.raises(StarError, match="^Outer: expected keys with values, got \\[\\]$"):
        strict.build(Outer, [])
    with pytest.raises(StarError, match="^unknown: unknown key \\(allowed: by_name, flag, "):
        strict.build(Outer, {"name": "x", "unknown": 1})


def test_difference_names_the_first_key_unless_it_is_free():
    there, here = Outer("x", Inner(0.5, 1), by_name={"a": 1.0}), Outer("x", Inner(0.5, 2), by_name={"b": 1.0})
    assert strict.difference(there, there) == ""
    assert strict.difference(there, here) == "inner.steps is 1 there and 2 here"
    assert strict.difference(there, here, ("inner.steps",)) == "by_name.a is 1.0 there and None here"
    assert strict.difference(there, here, ("inner.steps", "by_name.a", "by_name.b")) == ""


def test_a_list_that_may_be_left_out_names_its_wrong_entry():
    @dataclass
    class Pairs:
        pairs: tuple[tuple[int, int], ...] | None = None

    assert (
        strict.build(Pairs, {"pairs": [[1, 2]]}).pairs == ((1, 2),)
        and strict.build(Pairs, {"pairs": None}).pairs is None
    )
    with pytest.raises(StarError, match=r"pairs\[1\]: expected \[int, int\], got \[3\]"):
        strict.build(Pairs, {"pairs": [[1, 2], [3]]})
    with pytest.raises(StarError, match="pairs: expected a list of .int, int. or null, got 3"):
        strict.build(Pairs, {"pairs": 3})


@dataclass(frozen=True)
class Limited:
    share: float | None = 0.5
    betas: tuple[float, ...] = (0.9, 0.98)


@pytest.mark.parametrize(
    ("values", "limits", "message"),
    [
        ({"share": 1.0}, "[0, 1)", "share: must be at least 0 and below 1, got 1.0"),
        ({"share": 0.0}, "(0, 1]", "share: must be above 0 and at most 1, got 0.0"),
        ({"share": 0.0}, "(0, inf)", "share: must be above 0, got 0.0"),
        ({"share": 0.9}, "[1, inf)", "share: must be 1 or more, got 0.9"),
        ({"share": float("nan")}, "[0, inf)", "share: must be 0 or more, got nan"),
        ({"share": None, "betas": (0.9, 1.0)}, "[0, 1)", r"betas: must be at least 0 and below 1, got \[0.9, 1.0\]"),
    ],
)
def test_what_lies_outside_of_limits_is_named(values, limits, message):
    with pytest.raises(StarError, match=message):
        strict.within(Limited(**values), limits, "share", "betas")
    strict.within(Limited(), "[0.5, 0.98]", "share", "betas")
    strict.within(Limited(share=None), "[0.5, 0.98]", "share", "betas")
