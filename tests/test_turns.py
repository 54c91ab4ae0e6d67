"""Slow tests take turns."""

from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SHARES, share


@given(names=st.lists(st.text(), unique=True), turn=st.integers(0, 2**32))
def test_every_slow_test_has_one_turn_of_so_many(names: list[str], turn: int) -> None:
    turns = [name for number in range(turn, turn + SHARES) for name in share(names, number)]
    assert sorted(turns) == sorted(names)
