"""Names of identities are unambiguous in text, folder and certificate."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hedgerow.pki.names import Identity, IdentityKind, PkiError, check_site, of, parse
from hedgerow.topics import is_name

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20).filter(is_name)


@given(NAMES, NAMES, st.sampled_from(["{0}/{1}", "{0}/broker", "{0}", "{1}@{0}"]))
def test_names_round_trip(authority: str, name: str, form: str) -> None:
    assume(authority not in ("region", "broker") and name != "broker")
    text = form.format(authority, name)
    identity = parse(text)

    assert str(identity) == identity.user == text
    assert parse(str(identity)) == identity


@given(st.text(max_size=70))
def test_any_text_is_an_identity_or_an_error_with_a_remedy(text: str) -> None:
    """An identity's folder stays inside its authority's, and an authority's name is never a path."""
    problem, identity = "", None
    try:
        identity = parse(text)
    except PkiError as error:
        problem = error.remedy
    if identity is None:
        assert problem
        return
    for part in (identity.authority, identity.name):
        assert is_name(part)
        assert part not in (".", "..")
        assert "/" not in part


@given(st.lists(st.tuples(NAMES, NAMES, st.sampled_from(["{0}/{1}", "{0}", "{1}@{0}"])), min_size=2, max_size=2))
def test_different_identities_have_different_user_names(two: list[tuple[str, str, str]]) -> None:
    found = []
    for authority, name, form in two:
        assume(authority not in ("region", "broker") and name != "broker")
        found.append(parse(form.format(authority, name)))
    assert (found[0] == found[1]) is (found[0].user == found[1].user)


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("hall/gateway", Identity(IdentityKind.NODE, "hall", "gateway")),
        ("hall/broker", Identity(IdentityKind.BROKER, "hall", "broker")),
        ("region/broker", Identity(IdentityKind.BROKER, "region", "broker")),
        ("hall", Identity(IdentityKind.BRIDGE, "region", "hall")),
        ("world/bridge/north", Identity(IdentityKind.BRIDGE, "world", "north")),
        ("anna@region", Identity(IdentityKind.SERVICE, "region", "anna")),
        ("kim@hall", Identity(IdentityKind.SERVICE, "hall", "kim")),
    ],
)
def test_each_form_has_its_kind_and_its_authority(text: str, identity: Identity) -> None:
    assert parse(text) == identity


@pytest.mark.parametrize(
    "text", ["", "a/b/c", "a/bridge/", "a/bridge/b/c", "broker", "a/bridge/broker", "a@b@c", "a/", "/a", "@a", "../a", "a/..", "region", "region/node", "broker@hall", "a b", "a" * 65, "a\0b"]
)  # fmt: skip
def test_invalid_identities_are_refused(text: str) -> None:
    with pytest.raises(PkiError):
        parse(text)


def test_a_bridge_is_named_as_on_the_upper_broker() -> None:
    """Its authority distinguishes it from a site's bridge of the same name, in text and folder."""
    identity = parse("world/bridge/north")

    assert (identity.user, str(identity)) == ("north", "world/bridge/north")
    assert of("world", "north", "north", broker=False) == identity
    assert of("region", "north", "north", broker=False) == parse("north")


def test_a_site_must_not_be_named_like_the_regions_authority() -> None:
    assert check_site("hall-2") == "hall-2"
    with pytest.raises(PkiError):
        check_site("region")
