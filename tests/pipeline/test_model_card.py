"""Model cards: names without places, and licences that the hub accepts."""

from types import SimpleNamespace

import pytest

from lite_c2f.pipeline.model_card import _licence, licence_of, public_name


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/me/models/small", "small"),
        ("C:\\Users\\me\\small", "small"),
        ("/cache/models--org--base-7b/snapshots/27d6", "org/base-7b"),
        ("org/base-7b", "org/base-7b"),
        ("\\\\server\\alice\\small", "small"),
        ("/", "local folder"),
    ],
)
def test_public_names(place, name):
    assert public_name(place) == name


def test_several_licences_are_not_stated():
    assert licence_of({"license": ["mit", "apache-2.0"]}) == {}
    assert licence_of({"license": "other", "license_name": "own"}) == {"license": "other", "license_name": "own"}


def test_models_of_one_name_are_named_once():
    records = SimpleNamespace(model=lambda name: name)
    assert _licence(records, ["toy", "toy"], {}, True) == "Not stated here: that of toy applies, and that of the data."
    assert "that of a and b applies" in _licence(records, ["a", "b"], {}, True)
