"""Renewal of a link under load, as after certificates were renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles

FRAMES = 3000


async def test_a_renewal_under_load_neither_loses_nor_duplicates_frames(
    tmp_path: Path, listener: Callable[..., Any], eventually: Callable[..., Awaitable[None]]
) -> None:
    """Both sides reconnect with new certificates while QoS 1 frames flow."""
    pki, life = Pki(tmp_path, lambda: datetime.now(UTC)), timedelta(days=1)
    pki.init("plant", ["hall"])
    broker_files = pki.issue(parse("hall/broker"), life, hosts=["localhost"]).folder
    homes = {name: pki.issue(parse(f"hall/{name}"), life).folder for name in ("sensor", "gateway")}
    tls = TlsFiles(
        broker_files / "trust.crt",
        broker_files / "tls.crt",
        broker_files / "tls.key",
        require_certificate=True,
        crl_file=broker_files / "trust.crl",
        identity_as_username=True,
    )

    def files(name: str) -> dict[str, Path]:
        home = homes[name]
        parts = {"ca": "trust.crt", "cert": "tls.crt", "key": "tls.key", "crl": "trust.crl"}
        return {f"{part}_file": home / file for part, file in parts.items()}

    with Mosquitto(tls=tls) as broker:
        async with (
            listener(broker.url, client_id="gateway", **files("gateway")) as gateway,
            listener(broker.url, client_id="sensor", **files("sensor")) as sensor,
        ):
            await gateway.wait_connected(60)
            await gateway.subscribe({"a": 1})
            await sensor.wait_connected(60)

            async def send() -> None:
                for number in range(FRAMES):
                    sensor.publish("a", b"%d" % number, qos=1)
                    if number % 20 == 0:
                        await asyncio.sleep(0)

            sending = asyncio.create_task(send())
            for round_ in range(3):
                await eventually(lambda seen=200 * (round_ + 1): len(gateway.messages) >= seen, timeout_s=60)
                pki.renew([parse("hall/gateway"), parse("hall/sensor")], new_key=True)
                await gateway.renew()
                await sensor.renew()
                await gateway.wait_connected(60)
                await sensor.wait_connected(60)
            await sending
            await sensor.flush(60)
            await eventually(lambda: len(set(gateway.payloads)) == FRAMES, lambda: f"{len(gateway.messages)}", 60)
            assert gateway.payloads == [b"%d" % number for number in range(FRAMES)]
            assert (gateway.reconnects, sensor.reconnects) == (3, 3)
