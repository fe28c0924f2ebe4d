"""Key ceremonies for lost, stolen and rotated keys, and their effect on a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, Signer

from hedgerow.trust import errors, key_ceremony
from hedgerow.trust.repository import Repository
from hedgerow.trust.staged_metadata import sign_staged, staged
from hedgerow.trust.status import read_status

World = Any
DAY = 86_400.0


def new_key() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def rotate(world: World, *roles: str, new: Sequence[Signer] = (), old: Sequence[Signer] = (), **more: Any) -> Any:
    return key_ceremony.rotate(
        world.repository,
        roles,
        new=[key.public_key for key in new],
        old=[key.public_key.keyid for key in old],
        **more,
    )


# Creation


def test_a_repository_is_created_once(world: World) -> None:
    with pytest.raises(errors.BadRepository, match="is a repository already"):
        key_ceremony.create(
            world.repository,
            root_keys=[],
            root_threshold=1,
            targets_keys=[],
            online_key=new_key().public_key,
            signers=[],
        )


@pytest.mark.parametrize(("threshold", "signers"), [(3, 2), (0, 2), (2, 1)])
def test_a_root_that_could_never_be_changed_is_not_created(world: World, threshold: int, signers: int) -> None:
    keys, targets = [new_key(), new_key()], new_key()
    repository = Repository(world.folder / "another")

    with pytest.raises((errors.BadRepository, errors.NotAllowed)) as refused:
        key_ceremony.create(
            repository,
            root_keys=[key.public_key for key in keys],
            root_threshold=threshold,
            targets_keys=[targets.public_key],
            online_key=new_key().public_key,
            signers=[*keys[:signers], targets],
        )
    assert refused.value.remedy
    assert not repository.metadata.exists()


# The root: two of three


def test_one_of_three_stages_a_change_and_a_second_completes_it(world: World) -> None:
    ref, added = world.publish(), new_key()

    step = rotate(world, "root", new=[added], old=[world.root_keys[2]], signers=world.root_keys[:1])

    assert (step.missing, step.live) == (1, False)
    assert world.node.refresh().root == 1
    (change,) = read_status(world.repository, world.time.wall).staged
    assert (change.role, change.version, change.missing) == ("root", 2, 1)
    with pytest.raises(errors.NotAllowed, match="No change waits for a signature by these keys"):
        sign_staged(world.repository, [new_key(), world.root_keys[0]])

    (completed,) = sign_staged(world.repository, [world.root_keys[1]])

    assert (completed.missing, completed.live) == (0, True)
    assert staged(world.repository) == []
    assert world.node.refresh().root == 2
    assert world.node.manifest(ref, {})


def test_a_second_change_does_not_replace_a_staged_one(world: World) -> None:
    rotate(world, "root", new=[new_key()], signers=world.root_keys[:1])
    before = staged(world.repository)[0].read_bytes()

    with pytest.raises(errors.BadRepository, match="waits for signatures already") as refused:
        rotate(world, "root", new=[new_key()], signers=world.root_keys[:2])

    assert "hedgerow trust sign" in refused.value.remedy
    assert staged(world.repository)[0].read_bytes() == before


def test_an_outdated_staged_change_cannot_be_signed(world: World) -> None:
    rotate(world, "root", new=[new_key()], signers=world.root_keys[:1])
    (change,) = staged(world.repository)
    content = change.read_bytes()
    change.unlink()
    rotate(world, "root", signers=world.root_keys)
    change.write_bytes(content)  # a copy is restored
    valid = (world.repository.metadata / "2.root.json").read_bytes()

    with pytest.raises(errors.BadRepository, match="is outdated: root 2 is valid already"):
        sign_staged(world.repository, [world.root_keys[1]])
    assert (world.repository.metadata / "2.root.json").read_bytes() == valid


def test_a_lost_root_key_is_replaced_by_the_remaining_ones(world: World) -> None:
    """Anything the lost key signs afterwards is invalid."""
    ref, added = world.publish(), new_key()
    lost, *remaining = world.root_keys

    assert rotate(world, "root", new=[added], old=[lost], signers=remaining).live
    assert world.node.refresh().root == 2
    assert world.node.manifest(ref, {})
    step = rotate(world, signers=[lost, remaining[0]])
    assert step.missing == 1
    (completed,) = sign_staged(world.repository, [added])
    assert completed.live
    assert world.client("new").refresh().root == 3


def test_all_root_keys_can_be_replaced_one_by_one(world: World) -> None:
    """A node that was off meanwhile follows every root."""
    ref, keys = world.publish(), list(world.root_keys)
    for _ in range(3):
        fresh = new_key()
        rotate(world, "root", new=[fresh], old=[keys[0]], signers=[*keys, fresh])
        keys = [*keys[1:], fresh]

    assert world.node.refresh().root == 4
    assert world.node.manifest(ref, {})


def test_a_threshold_is_raised_and_lowered(world: World) -> None:
    rotate(world, "root", threshold=3, signers=world.root_keys)
    assert world.node.refresh().root == 2
    assert rotate(world, "root", threshold=2, signers=world.root_keys[:2]).missing == 1
    with pytest.raises(errors.BadRepository, match="waits"):
        rotate(world, "root", threshold=4, signers=world.root_keys)
    staged(world.repository)[0].unlink()
    with pytest.raises(errors.BadRepository, match="cannot require 4 signatures from 3 keys"):
        rotate(world, "root", threshold=4, signers=world.root_keys)


def test_a_root_close_to_expiry_is_signed_again(world: World) -> None:
    world.time.advance(700 * DAY)
    rotate(world, signers=world.root_keys[:2])
    world.time.advance(29 * DAY)
    key_ceremony.renew(world.repository, "targets", [world.targets_key])
    world.repository.refresh_timestamp()

    assert world.node.refresh().root == 2
    world.time.advance(2 * DAY)
    world.repository.refresh_timestamp()
    assert world.node.refresh().root == 2


@pytest.mark.parametrize("old", ["nobody", ""])
def test_an_unknown_or_ambiguous_key_is_not_removed(world: World, old: str) -> None:
    with pytest.raises(errors.BadRepository, match="of that role") as refused:
        key_ceremony.rotate(world.repository, ("root",), old=[old], signers=world.root_keys)
    assert world.root_keys[0].public_key.keyid[:8] in refused.value.remedy


# The targets role


def test_a_lost_targets_key_is_replaced_in_one_step(world: World) -> None:
    """The root replaces the key, and the new one signs the list of owners."""
    ref, new = world.publish(), new_key()

    step = rotate(world, "targets", new=[new], old=[world.targets_key], signers=[*world.root_keys[:2], new])

    assert (step.role, step.missing, step.live) == ("targets", 0, True)
    assert world.node.manifest(ref, {})
    assert world.node.refresh().root == 2
    with pytest.raises(errors.NotAllowed, match="None of the given keys may sign the list of owners"):
        world.add_owner("gates", new_key(), "turnstile")
    world.targets_key = new
    world.add_owner("gates", new_key(), "turnstile")
    assert world.node.manifest(ref, {})


def test_a_lost_targets_key_is_replaced_in_two_steps_if_signers_are_absent(world: World) -> None:
    """In between, nodes refuse changes; the repository's status says what to do."""
    ref, new = world.publish(), new_key()

    step = rotate(world, "targets", new=[new], old=[world.targets_key], signers=world.root_keys[:2])

    assert (step.missing, step.live, step.to_renew) == (0, False, ("targets",))
    with pytest.raises(errors.UnknownSigningKey, match="targets"):
        world.client("new").refresh()
    (problem,) = read_status(world.repository, world.time.wall).problems
    assert "hedgerow trust renew targets" in problem
    with pytest.raises(errors.BadRepository) as refused:
        world.publish("1.1.0")
    assert "hedgerow trust renew targets" in refused.value.remedy

    assert key_ceremony.renew(world.repository, "targets", [new]).live
    assert read_status(world.repository, world.time.wall).problems == []
    assert world.client("newer").manifest(ref, {})


# Owners


def test_an_owner_switches_to_a_new_key_without_a_gap(world: World) -> None:
    """First both keys are valid, then the new one signs, then the old one is removed."""
    ref, new, old = world.publish(), new_key(), world.owner_key

    def owner(**change: Any) -> Any:
        return key_ceremony.rotate_owner(world.repository, "doors", signers=[world.targets_key], **change)

    assert owner(new=[new.public_key]).to_renew == ()
    assert world.client("a").manifest(ref, {})
    key_ceremony.renew(world.repository, "doors", [new])
    assert world.client("b").manifest(ref, {})
    assert owner(old=[old.public_key.keyid]).to_renew == ()
    assert world.client("c").manifest(ref, {})
    with pytest.raises(errors.NotAllowed):
        world.publish("1.1.0", key=old)
    assert world.client("d").manifest(world.publish("1.1.0", b"better", key=new), {})


def test_versions_signed_with_a_stolen_key_are_invalid_until_signed_again(world: World) -> None:
    good = world.publish("1.0.0")
    bad = world.publish("6.6.6", b"malice")
    new = new_key()

    step = key_ceremony.rotate_owner(
        world.repository,
        "doors",
        new=[new.public_key],
        old=[world.owner_key.public_key.keyid],
        signers=[world.targets_key],
    )

    assert step.to_renew == ("doors",)
    with pytest.raises(errors.UnknownSigningKey, match="owner doors"):
        world.client("a").manifest(good, {})
    with pytest.raises(errors.NotAllowed, match="signed its versions with keys it no longer has") as refused:
        world.publish("1.1.0", key=new)
    assert "hedgerow trust renew doors" in refused.value.remedy
    key_ceremony.renew(world.repository, "doors", [new], keep=lambda path: "6.6.6" not in path)
    assert world.client("b").manifest(good, {})
    with pytest.raises(errors.UnknownTarget):
        world.client("b").manifest(bad, {})


def test_an_owner_can_be_several_people(world: World) -> None:
    two = [new_key(), new_key()]
    key_ceremony.add_owner(
        world.repository,
        "board",
        models=["brake"],
        keys=[key.public_key for key in two],
        threshold=2,
        signers=[world.targets_key],
    )

    with pytest.raises(errors.NotAllowed, match="only 1 of the 2 keys"):
        world.publish(name="brake", key=two[0])
    assert world.node.manifest(world.publish(name="brake", key=two), {})


def test_nothing_signed_by_a_removed_owner_is_valid(world: World) -> None:
    """Not even if a new owner has the same name."""
    ref = world.publish()
    key_ceremony.remove_owner(world.repository, "doors", [world.targets_key])
    with pytest.raises(errors.UnknownTarget):
        world.client("a").manifest(ref, {})

    other = new_key()
    world.add_owner("doors", other, "door")
    with pytest.raises(errors.UnknownSigningKey):
        world.client("b").manifest(ref, {})
    key_ceremony.renew(world.repository, "doors", [other], keep=lambda _: False)
    with pytest.raises(errors.UnknownTarget):
        world.client("c").manifest(ref, {})
    assert world.client("d").manifest(world.publish("2.0.0", b"other", key=other), {})


@pytest.mark.parametrize(
    ("owner", "models", "message"),
    [
        ("root", ["meter"], "is not a valid owner name"),
        ("online", ["meter"], "is not a valid owner name"),
        ("../up", ["meter"], "is not a valid owner name"),
        ("gates", ["a/b"], "is not a valid model name or pattern"),
        ("gates", [], "is new and has no models"),
        ("gates", ["door"], "door belongs to doors"),
        ("gates", ["gate-7"], "gate-7 belongs to doors"),
        ("gates", ["*"], r"\* belongs to doors"),
    ],
)
def test_an_invalid_owner_is_refused(world: World, owner: str, models: list[str], message: str) -> None:
    before = world.repository.latest_version("targets")

    with pytest.raises(errors.BadRepository, match=message) as refused:
        world.add_owner(owner, new_key(), *models)
    assert refused.value.remedy
    assert world.repository.latest_version("targets") == before


def test_an_unknown_owner_is_reported_with_the_known_ones(world: World) -> None:
    for act in (
        lambda: key_ceremony.remove_owner(world.repository, "dors", [world.targets_key]),
        lambda: key_ceremony.rotate_owner(world.repository, "dors", signers=[world.targets_key]),
        lambda: key_ceremony.renew(world.repository, "dors", [world.owner_key]),
    ):
        with pytest.raises(errors.BadRepository, match="There is no owner 'dors'") as refused:
            act()
        assert "doors" in refused.value.remedy


def test_an_unknown_key_cannot_change_owners(world: World) -> None:
    with pytest.raises(errors.NotAllowed, match="None of the given keys may sign the list of owners"):
        key_ceremony.remove_owner(world.repository, "doors", [new_key(), world.owner_key])
    assert staged(world.repository) == []
