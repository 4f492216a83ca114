"""Texts in one piece of memory: what goes in comes out."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from pipeline.util.texts import Texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.data())
def test_what_goes_in_comes_out(texts: list[str], draw: st.DataObject) -> None:
    found = Texts(texts)
    assert (len(found), list(found)) == (len(texts), texts)
    for index in range(-len(texts), len(texts)):
        assert found[index] == texts[index]
    some = draw.draw(st.slices(len(texts)))
    assert found[some] == texts[some]
    assert found == Texts(texts)
    assert found.digest() == Texts(texts).digest()
    assert Texts.of(found) is found


@given(st.binary())
def test_file_names_that_are_no_utf_8(name: bytes) -> None:
    assert os.fsencode(Texts([os.fsdecode(name)])[0]) == name


def test_where_texts_end_matters() -> None:
    assert Texts(["ab", "c"]) != Texts(["a", "bc"])
    assert Texts(["ab", "c"]).digest() != Texts(["a", "bc"]).digest()
