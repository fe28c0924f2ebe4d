"""Revocation lists have a lifetime, are renewed before it ends, and keep everyone out when it has ended."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.diagnosis import diagnose
from hedgerow.pki.certificates import LIST_LIFE
from hedgerow.pki.folder import Pki
from hedgerow.pki.inspect import x509_lists
from hedgerow.pki.names import PkiError, parse
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles

NOW = datetime.now(UTC).replace(microsecond=0)
YEAR = timedelta(days=365)
DAY = timedelta(days=1)


def pki(folder: Path, at: datetime = NOW) -> Pki:
    made = Pki(folder, lambda: at)
    made.init("test", ["hall"])
    return made


def ends(of: Pki, name: str = "hall") -> datetime:
    known = of.authority(name).revocations()
    assert known is not None
    assert known.next_update_utc is not None
    return known.next_update_utc


def number(of: Pki) -> int:
    known = of.authority("hall").revocations()
    assert known is not None
    return known.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_a_list_lives_as_long_as_a_certificate_not_as_its_authority(tmp_path: Path) -> None:
    """Only the root's lives as long as the root, whose key is offline; brokers do not read it."""
    made = pki(tmp_path)

    assert ends(made) == ends(made, "region") == NOW + LIST_LIFE == NOW + timedelta(days=30)
    root = made.root.revocations()
    assert root is not None
    assert root.next_update_utc == made.root.certificate().not_valid_after_utc


def test_a_list_is_renewed_once_a_third_of_its_life_has_passed_and_reaches_every_folder(tmp_path: Path) -> None:
    pki(tmp_path).issue(parse("hall/a"), YEAR)
    soon, later = Pki(tmp_path, lambda: NOW + 9 * DAY), Pki(tmp_path, lambda: NOW + 11 * DAY)

    assert soon.renew_lists() == []
    assert later.renew_lists(dry_run=True) == ["hall", "region"]
    assert ends(later) == NOW + LIST_LIFE
    assert later.renew_lists() == ["hall", "region"]
    assert ends(later) == NOW + 11 * DAY + LIST_LIFE
    assert later.renew_lists() == []
    (own,) = [one for one in x509_lists(tmp_path / "hall/issued/a/trust.crl") if one.next_update_utc == ends(later)]
    assert own.issuer.rfc4514_string().startswith("CN=hall")


def test_a_list_from_before_gets_a_lifetime_at_the_next_run(tmp_path: Path) -> None:
    made = pki(tmp_path)
    signer = made.authority("hall")
    signer.write_revocations(signer.key(), NOW, YEAR * 5)
    assert ends(made) == signer.certificate().not_valid_after_utc

    assert made.renew_lists() == ["hall"]
    assert ends(made) == NOW + LIST_LIFE


def test_a_chosen_lifetime_is_kept_when_a_certificate_is_revoked_and_when_the_list_is_renewed(tmp_path: Path) -> None:
    made = pki(tmp_path)
    made.issue(parse("hall/a"), YEAR)
    assert made.renew_lists(timedelta(days=7)) == ["hall", "region"]
    before = number(made)
    made.revoke(parse("hall/a"), "key-compromise")
    assert ends(made) == NOW + timedelta(days=7)
    assert number(made) == before + 1
    for later in (3, 6, 9, 12):
        assert Pki(tmp_path, lambda later=later: NOW + later * DAY).renew_lists() == ["hall", "region"]  # type: ignore[misc]
        assert ends(made) == NOW + (later + 7) * DAY
    assert made.authority("hall").revoked() != {}


@pytest.mark.parametrize("days_left", [29, 20, 3, 0.1])
def test_a_list_that_ends_with_its_authority_is_not_rewritten_at_every_run(tmp_path: Path, days_left: float) -> None:
    """No new one can end later."""
    made = pki(tmp_path)
    last = Pki(tmp_path, lambda: made.authority("hall").certificate().not_valid_after_utc - days_left * DAY)
    assert last.renew_lists() == ["hall", "region"]
    before = number(last)

    assert ends(last) == last.authority("hall").certificate().not_valid_after_utc
    assert last.renew_lists() == []
    assert number(last) == before


@pytest.mark.parametrize(("chosen", "expected"), [(None, LIST_LIFE), (timedelta(days=7), timedelta(days=7))])
def test_the_lists_of_an_authority_that_was_renewed_live_as_long_as_before(
    tmp_path: Path, chosen: timedelta | None, expected: timedelta
) -> None:
    """Its last list lived only until the authority's end, which is no choice of anyone."""
    at = pki(tmp_path).authority("hall").certificate().not_valid_after_utc - 10 * DAY
    made = Pki(tmp_path, lambda: at)
    made.renew_lists(chosen)
    made.renew_authority("hall")

    assert ends(made) == at + expected


def test_an_authority_without_its_key_here_is_left_alone(tmp_path: Path) -> None:
    pki(tmp_path).authority("hall").key_file.unlink()

    assert Pki(tmp_path, lambda: NOW + 20 * DAY).renew_lists() == ["region"]


class Estate:
    """A broker, a client, and their certificates of a year; the list was made some time ago."""

    def __init__(self, folder: Path, ago: timedelta) -> None:
        self.folder = folder
        past = pki(folder / "pki", NOW - ago)
        self.broker_home = past.issue(parse("hall/broker"), YEAR, hosts=["localhost"]).folder
        self.home = past.issue(parse("hall/a"), YEAR).folder
        home = self.broker_home
        self.tls = TlsFiles(home / "trust.crt", home / "tls.crt", home / "tls.key", True, home / "trust.crl", True)

    async def answer(self, port: int, **options: Any) -> str:
        """Return "connected", or why a client with a valid certificate is refused."""
        files = {"ca_file": "trust.crt", "cert_file": "tls.crt", "key_file": "tls.key"}
        refusal = await diagnose(
            ClientOptions(
                url=f"mqtts://localhost:{port}",
                client_id="a",
                **{name: self.home / file for name, file in files.items()},
                **options,
            )
        )
        return "connected" if refusal is None else str(refusal)


async def test_a_broker_with_an_expired_list_refuses_every_client_until_it_reads_a_new_one(tmp_path: Path) -> None:
    """It fails closed: whoever keeps new lists from it gains nothing. The client's error names the list."""
    estate = Estate(tmp_path, ago=31 * DAY)
    with Mosquitto(tls=estate.tls) as broker:
        assert "the broker's list of revoked certificates has" in await estate.answer(broker.port)
        assert Pki(tmp_path / "pki", lambda: NOW).renew_lists() == ["hall", "region"]
        assert "expired" in await estate.answer(broker.port)
        broker.reload()
        deadline = time.monotonic() + 60
        while (answer := await estate.answer(broker.port)) != "connected":
            assert time.monotonic() < deadline, answer


async def test_a_broker_whose_list_is_a_day_from_its_end_still_lets_clients_in(tmp_path: Path) -> None:
    estate = Estate(tmp_path, ago=29 * DAY)
    with Mosquitto(tls=estate.tls) as broker:
        assert await estate.answer(broker.port) == "connected"


async def test_a_node_with_an_expired_list_refuses_the_broker(tmp_path: Path) -> None:
    """If it checks lists, with `crl_file`."""
    estate = Estate(tmp_path, ago=31 * DAY)
    home = estate.broker_home
    tls = TlsFiles(home / "trust.crt", home / "tls.crt", home / "tls.key", True, None, True)
    with Mosquitto(tls=tls) as broker:
        assert await estate.answer(broker.port) == "connected", "without a list it does not know"
        answer = await estate.answer(broker.port, crl_file=estate.home / "trust.crl")
        assert "By this machine's clock" in answer


@pytest.mark.parametrize("host", ["*", "*.lan", "*.hall.lan", "a.*.lan", "broker.*", "ho*st.hall.lan", "**.hall.lan"])
def test_a_wildcard_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(PkiError, match="covers names of other machines") as caught:
        pki(tmp_path).issue(parse("hall/broker"), DAY, hosts=["broker.hall.lan", host])
    assert "--host broker.hall-2.lan" in caught.value.remedy


@pytest.mark.parametrize(
    "host", ["*", "*.lan", "a.*.lan", "ho*st.hall.lan", "**.hall.lan", "*.*.hall.lan", "*.hall.lan.*"]
)
def test_a_wildcard_that_covers_too_much_is_refused_even_if_wildcards_are_allowed(tmp_path: Path, host: str) -> None:
    with pytest.raises(PkiError, match="covers names of other machines"):
        pki(tmp_path).issue(parse("hall/broker"), DAY, hosts=[host], allow_wildcard=True)


@pytest.mark.parametrize(
    "host", ["", ".", "..", "a..b", "-a.lan", "a-.lan", "a b", "a\nb", "x" * 64, "a." * 130 + "a", "ä.lan"]
)
def test_what_is_no_host_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(PkiError, match="is not a host name"):
        pki(tmp_path).issue(parse("hall/broker"), DAY, hosts=["ok.lan", host])
