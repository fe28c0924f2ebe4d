"""How long peers are left out, and how many are remembered."""

from __future__ import annotations

from hedgerow.blobs.peers.distrust import PeerDistrust


def test_a_peer_is_left_out_for_twice_as_long_each_time_up_to_an_hour() -> None:
    distrust, now, times = PeerDistrust(), 1000.0, []
    for _ in range(7):
        times.append(distrust.leave_out("m", now))
        assert distrust.includes("m", now + times[-1] - 0.01)
        now += times[-1]
        assert not distrust.includes("m", now)

    assert times == [120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]


def test_what_a_peer_does_while_it_is_left_out_changes_nothing() -> None:
    distrust = PeerDistrust()
    assert distrust.leave_out("m", 0.0) == 120.0
    assert distrust.leave_out("m", 119.99) == 0.0
    assert not distrust.includes("m", 120.0)
    assert distrust.leave_out("m", 120.0) == 240.0


def test_only_peers_that_are_left_out_now_are_named() -> None:
    distrust = PeerDistrust()
    distrust.leave_out("early", 0.0)
    distrust.leave_out("late", 60.0)

    assert distrust.names(119.99, 5) == ("early", "late")
    assert distrust.names(119.99, 1) == ("early",)
    assert distrust.names(120.0, 5) == ("late",)
    assert not distrust.includes("unknown", 0.0)


def test_a_peer_that_behaved_for_four_hours_starts_over() -> None:
    distrust = PeerDistrust()
    assert distrust.leave_out("m", 0.0) == 120.0
    assert distrust.leave_out("m", 120.0 + 4 * 3600.0 - 1) == 240.0
    ends = 120.0 + 4 * 3600.0 - 1 + 240.0
    assert distrust.leave_out("m", ends + 4 * 3600.0) == 120.0


def test_at_most_1024_peers_are_remembered() -> None:
    distrust = PeerDistrust()
    for number in range(1025):
        distrust.leave_out(f"m{number}", 0.0)

    assert not distrust.includes("m0", 1.0)
    assert distrust.includes("m1", 1.0)
    assert len(distrust.names(1.0, 5000)) == 1024
