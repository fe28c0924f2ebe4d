"""Access denials in Mosquitto's log are recognised, whatever the client ids and topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.topology.refusals import AccessDenial, AccessDenials, is_chatter, readable, writable

ACL = "# Ours.\nuser hall/a\ntopic read plant/+/door\ntopic write x/#\n\nuser hall/b\ntopic readwrite x/b\n"
AT = 1795642290
texts = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30)
awkward = texts | st.sampled_from(
    [
        "a b",
        "it's",
        "x (p5, c1, k60, u'root')",
        "x (d0, q1, r0, m1, 'y', ... (2 bytes))",
        "Sending PUBACK to x",
        "# (QoS 1)",
    ]
)


def read(*lines: str, acl: str | None = ACL) -> list[AccessDenial]:
    reader = AccessDenials(None if acl is None else readable(acl))
    return [found for line in lines if (found := reader.take(f"{AT}: {line}\n")) is not None]


def connected(client: str, user: str) -> str:
    return f"New client connected from 127.0.0.1:40576 as {client} (p5, c1, k60, u'{user}')."


def denied(client: str, topic: str) -> str:
    return f"Denied PUBLISH from {client} (d0, q1, r0, m1, '{topic}', ... (2 bytes))"


@given(awkward, texts)
def test_a_refused_publish_names_its_user_whatever_the_client_id(client: str, topic: str) -> None:
    """A client id cannot spoof another user: the last match in a line is the broker's own text."""
    assert read(connected(client, "hall/a"), denied(client, topic)) == [
        AccessDenial(AT, "publish", "hall/a", client, topic)
    ]


@pytest.mark.parametrize(
    "line",
    [
        "OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        "Client connection from 127.0.0.1 failed: error:0A0000C7:SSL routines::peer did not return a certificate.",
    ],
)
def test_a_client_without_a_certificate_is_counted_however_its_bytes_arrive(line: str) -> None:
    """If its first bytes come with the connection, Mosquitto logs another line."""
    assert read(line) == [AccessDenial(AT, "connect", "", "", "no certificate")]


def test_a_refusal_does_not_show_the_token_of_a_client_id() -> None:
    client = "hedgerow/north/hall/a/doors/0123456789abcdef0123456789abcdef"
    (found,) = read(connected(client, "hall/a"), denied(client, "x"))
    assert found.client == "hedgerow/north/hall/a/doors/…"


@given(texts, awkward)
def test_every_refusal_is_counted_whatever_the_topic(client: str, topic: str) -> None:
    (found,) = read(connected(client, "hall/a"), denied(client, topic))

    assert (found.what, found.at) == ("publish", AT)


@given(st.lists(awkward | st.sampled_from([connected("a", "hall/a"), denied("a", "x"), "Received SUBSCRIBE from a"])))
def test_any_line_can_be_read(lines: list[str]) -> None:
    assert all(found.at == AT for found in read(*lines))


@pytest.mark.parametrize(
    ("pattern", "permitted"),
    [
        ("#", True),
        ("plant/1/door", True),
        ("$share/group/plant/1/door", True),
        ("plant/1/safe", False),
        ("x/b", False),
        ("$SYS/#", False),
        ("$share/group/x/b", False),
    ],
)
def test_a_subscription_without_read_access_is_reported(pattern: str, permitted: bool) -> None:
    """A verbose broker writes other lines in between."""
    denials = read(
        connected("c", "hall/a"), "Received SUBSCRIBE from c", "\tplant/2/door (QoS 1)", "c 1 plant/2/door", f"\t{pattern} (QoS 1)"
    )  # fmt: skip

    assert denials == ([] if permitted else [AccessDenial(AT, "subscribe", "hall/a", "c", pattern)])


def test_subscriptions_are_not_checked_without_an_access_list() -> None:
    assert read(connected("c", "hall/a"), "Received SUBSCRIBE from c", "\tx (QoS 1)", acl=None) == []


def test_a_will_is_not_mistaken_for_a_subscription() -> None:
    """Its topic line looks like a filter line."""
    assert read("Received SUBSCRIBE from c", "Will message specified (1 bytes) (r0, q1).", "\tx (QoS 1)") == []


def test_a_client_id_that_reconnects_as_another_user_is_the_new_user() -> None:
    found = read(
        connected("c", "hall/a"), "Client c disconnected.", denied("c", "x"), connected("c", "hall/b"), denied("c", "x")
    )

    assert [one.user for one in found] == ["", "hall/b"]


@pytest.mark.parametrize("before", ["", "broker  | ", "Nov 25 21:31:30 gateway mosquitto[123]: "])
def test_prefixes_added_by_log_collectors_are_ignored(before: str) -> None:
    reader = AccessDenials()

    assert reader.take(f"{before}{AT}: {denied('c', 'x')}") == AccessDenial(AT, "publish", "", "c", "x")
    assert is_chatter(f"{before}{AT}: Received PUBLISH from c (d0, q0, r0, m0, 'x', ... (2 bytes))")
    assert not is_chatter(f"{before}{AT}: Received SUBSCRIBE from c")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Client connection from 10.0.0.7 denied: max_connections exceeded.",
            ("connect", "", "", "too many connections"),
        ),
        (
            "Client connection from 10.0.0.7 denied access by tcpd.",
            ("connect", "", "", "too many connections (open files"),
        ),
        (
            'Unable to accept new connection, system socket count has been exceeded. Try increasing "ulimit -n" or equivalent.',
            ("connect", "", "", "too many connections (open files"),
        ),
        ("Bad socket read/write on client c: Unknown error.", ("disconnect", "hall/a", "c", "Unknown error")),
        ("Client c disconnected due to out of memory.", ("disconnect", "hall/a", "c", "out of memory")),
        ("Client c disconnected due to oversize packet.", ("disconnect", "hall/a", "c", "oversize packet")),
        ("Client c disconnected due to malformed packet.", ("disconnect", "hall/a", "c", "malformed packet")),
        ("Outgoing messages are being dropped for client c.", ("drop", "hall/a", "c", "its queue is full")),
        ("Expiring client c due to timeout.", ("expire", "", "c", "it was absent for")),
    ],
)
def test_what_a_limit_ends_is_reported_with_its_user(line: str, expected: tuple[str, str, str, str]) -> None:
    (found,) = read(connected("c", "hall/a"), line)

    assert (found.what, found.user, found.client) == expected[:3]
    assert found.detail.startswith(expected[3])


@pytest.mark.parametrize(
    ("topic", "allowed"), [("x/1", True), ("x/b", True), ("plant/1/door", False), ("other", False)]
)
def test_a_last_will_that_is_not_allowed_is_reported_when_its_client_connects(topic: str, allowed: bool) -> None:
    """Mosquitto drops it later without a word."""
    reader = AccessDenials(readable(ACL), writable(ACL))
    lines = [
        connected("c", "hall/a"),
        "Will message specified (4 bytes) (r0, q1).",
        f"\t{topic}",
        "Sending CONNACK to c (0, 0)",
    ]
    found = [denial for line in lines if (denial := reader.take(f"{AT}: {line}")) is not None]

    assert found == ([] if allowed else [AccessDenial(AT, "will", "hall/a", "c", topic)])
    assert reader.counts["will", "hall/a"] == (not allowed)
