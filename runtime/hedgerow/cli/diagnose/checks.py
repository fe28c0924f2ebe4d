"""What `hedgerow doctor` looks at. Each check yields findings; an error of ours becomes a failed one."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from hedgerow import backends, configcheck, plugins
from hedgerow.backends.cores import cores
from hedgerow.cli.base.client import payload_of, publish_properties, user_properties
from hedgerow.cli.base.connection import HUNG_AFTER_S, broker_section, connected, is_hung
from hedgerow.cli.base.console import plural, size
from hedgerow.config import BrokerSection, NodeConfig
from hedgerow.errors import BackendMissing, HedgerowError
from hedgerow.models.serving.pool import ModelPool
from hedgerow.node.link.options import on_loopback
from hedgerow.topics import Address, Channel

_LIBRARIES: Final = ("numpy", "pydantic", "aiomqtt")
_LITTLE_DISK: Final = 1 << 30
_NO_DISK: Final = 100 << 20


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found.

    Attributes:
        check: what was looked at.
        state: "warning" is for what may be meant so.
        detail: what is there.
        remedy: what to do about it; "" if nothing.
    """

    check: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def examine(url: str | None, config_file: Path | None) -> Iterator[CheckResult]:
    """Look at everything, cheapest first.

    Args:
        url: the broker's address, if it was given.
        config_file: a node's configuration, if one was given.
    """
    yield from _machine()
    yield _clock()
    yield from _backends()
    yield _stages()
    yield _mosquitto()
    config = None
    if config_file is not None:
        try:
            config = configcheck.load(config_file)
            what = f"{plural(len(config.pipelines), 'pipeline')}, {plural(len(config.models), 'model')}"
            yield CheckResult("config", "ok", f"{config_file}: {what}")
        except HedgerowError as error:
            yield _failed("config", error)
    yield _disk(config)
    if config is not None and config_file is not None:
        yield from _models(config, config_file.parent)
    try:
        # A file that is wrong elsewhere may still say where the broker is; one that does not was reported above.
        broker = broker_section(url, config_file)
    except HedgerowError as error:
        if config_file is None or config is not None:
            yield _failed("broker", error)
        return
    yield from _broker(broker, config, _given_by(broker, url, config_file))
    yield from _encryption(broker)
    if broker.url.startswith("mqtts:"):
        yield from _certificates(broker, config)


def _given_by(broker: BrokerSection, url: str | None, config_file: Path | None) -> str:
    """Who gave the broker's address; "" if nobody did and it is the default."""
    if url is not None:
        return "--broker"
    if "url" not in broker.model_fields_set:
        return ""
    return "HEDGEROW_BROKER__URL" if config_file is None or "HEDGEROW_BROKER__URL" in os.environ else str(config_file)


def _failed(check: str, error: HedgerowError) -> CheckResult:
    return CheckResult(check, "failed", str(error), error.remedy)


def _machine() -> Iterator[CheckResult]:
    where = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield CheckResult("python", "ok", where)
    yield CheckResult("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in ("hedgerow", *_LIBRARIES)))
    owned, there = cores(), os.cpu_count() or 1
    limited = "" if owned == there else f" of {there}; the affinity mask or the container's quota leaves out the rest"
    yield CheckResult("cores", "ok", f"{owned}{limited}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"


def _clock() -> CheckResult:
    now = datetime.now(UTC)
    told = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if not 2026 <= now.year < 2100:
        return CheckResult(
            "clock", "failed", told, "Set the clock: frames would expire, and certificates not be valid."
        )
    try:
        shown = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],  # noqa: S607 - wherever the system has it
            capture_output=True,
            text=True,
            timeout=3,
            check=False,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    if shown == "no":
        remedy = "Turn it on (`timedatectl set-ntp true`): latency and expiry compare clocks of several machines."
        return CheckResult("clock", "warning", f"{told}, not synchronised", remedy)
    return CheckResult(
        "clock", "ok", f"{told}, {'synchronised' if shown == 'yes' else 'whether synchronised is not known'}"
    )


def _backends() -> Iterator[CheckResult]:
    missing = []
    known = backends.backends()
    for backend in known:
        try:
            yield CheckResult(backend.name, "ok", f"{backend.version}, devices: {', '.join(backend.devices())}")
        except BackendMissing as error:
            missing.append(CheckResult(backend.name, "warning", str(error), error.remedy))
        except HedgerowError as error:
            yield _failed(backend.name, error)
    yield from missing
    if len(missing) == len(known):
        yield CheckResult(
            "backends", "failed", "none is installed, no model can run", "`pip install 'hedgerow[onnx,openvino]'`"
        )


def _stages() -> CheckResult:
    names, broken = [], []
    for name in plugins.installed():
        try:
            plugins.find(name).load()
            names.append(name)
        except HedgerowError as error:
            broken.append(f"{name}: {error}")
    if broken:
        detail = f"{plural(len(broken), 'stage')} broken: {'; '.join(broken)}"
        return CheckResult(
            "stages", "warning", detail, "`hedgerow plugin list` has the reasons; no other stage is affected."
        )
    return CheckResult("stages", "ok", f"{plural(len(names), 'stage')}: {', '.join(names)}")


def _mosquitto() -> CheckResult:
    from hedgerow.testing.mosquitto import find_mosquitto

    try:
        binary = find_mosquitto()
    except HedgerowError as error:
        return CheckResult(
            "mosquitto", "warning", f"{error}; only `hedgerow demo` and tests need it here", error.remedy
        )
    shown = subprocess.run([binary, "-h"], capture_output=True, text=True, timeout=5, check=False).stdout  # noqa: S603 - found by us
    words = shown.partition("\n")[0].split()
    return CheckResult("mosquitto", "ok", f"{words[2] if len(words) > 2 else '(unknown version)'}, {binary}")


def _disk(config: NodeConfig | None = None) -> CheckResult:
    folder = (config.node.state_dir if config else Path(".hedgerow")).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    detail = f"{size(free)} free for {folder}"
    if not os.access(there, os.W_OK):
        remedy = "Let the node's user write there, or set `node.state_dir`."
        return CheckResult("disk", "failed", f"{folder} cannot be written: {there} is not ours", remedy)
    if free < _NO_DISK:
        return CheckResult("disk", "failed", detail, "Make room, or set `node.state_dir` to another disk.")
    if free < _LITTLE_DISK:
        return CheckResult("disk", "warning", detail, "Compiled models take some 100 MB; make room.")
    return CheckResult("disk", "ok", detail)


def _models(config: NodeConfig, base_dir: Path) -> Iterator[CheckResult]:
    pool = ModelPool(cores=config.node.threads or cores())  # without a folder: a check leaves nothing behind
    try:
        for name, model in config.models.items():
            check = f"model {name}"
            began = time.monotonic()
            try:
                slot = pool.acquire(name, model, base_dir)
            except HedgerowError as error:
                yield _failed(check, error)
                continue
            info = slot.info()
            took = f"loaded in {time.monotonic() - began:.1f} s"
            detail = f"{info.backend} {info.backend_version} on {info.device}, {', '.join(info.inputs)}, {took}"
            pool.release(slot)
            if info.degraded:
                remedy = "Install the device's driver, or ask for a device that is here."
                yield CheckResult(check, "warning", f"{detail}; {info.degraded}", remedy)
            else:
                yield CheckResult(check, "ok", detail)
    finally:
        pool.close()


def _broker(broker: BrokerSection, config: NodeConfig | None, given_by: str) -> Iterator[CheckResult]:
    address = config.node.address if config else Address("local", "site", "doctor")
    try:
        if asyncio.run(is_hung(broker)):
            yield CheckResult("broker", "failed" if given_by else "warning", *_hung(broker.url))
            return
        limits, trip_ms, kept = asyncio.run(_round_trip(broker, address))
    except HedgerowError as error:
        if given_by:  # somebody counts on one there
            yield CheckResult("broker", "failed", f"{error} (the address is from {given_by})", error.remedy)
        else:
            detail = f"none at {broker.url}, the default, and no other address was given"
            remedy = "Start one, or give yours: --broker, `broker: {url: …}` or HEDGEROW_BROKER__URL. `hedgerow demo` brings its own."
            yield CheckResult("broker", "warning", detail, remedy)
        return
    yield CheckResult("broker", "ok", f"{broker.url}, MQTT 5; {_told(limits)}")
    if trip_ms is None:
        remedy = f"Let this user publish and subscribe below {address.topic(Channel.REPLY, '#')}; see the broker's ACL."
        yield CheckResult("round trip", "warning", "a message that was published did not come back", remedy)
    elif not kept:
        remedy = "Is there a bridge or proxy that speaks MQTT 3.1.1? Use `bridge_protocol_version mqttv50`."
        yield CheckResult(
            "round trip", "failed", f"{trip_ms:.1f} ms, and MQTT 5 properties are lost on the way", remedy
        )
    else:
        yield CheckResult("round trip", "ok", f"{trip_ms:.1f} ms, MQTT 5 properties are kept")


def _hung(url: str) -> tuple[str, str]:
    detail = f"{url} accepts connections and answered nothing for {HUNG_AFTER_S:g} s: the broker there is likely hung"
    remedy = (
        "Restart it; nodes and outboxes wait and lose nothing. If it hangs again with a core to itself (`top`): a bridge with TLS "
        "to somebody who hangs up during the handshake does that to Mosquitto 2.0.11; see delivery.md."
    )
    return detail, remedy


def _encryption(broker: BrokerSection) -> Iterator[CheckResult]:
    if broker.url.startswith("mqtt:") and not on_loopback(broker.url):
        remedy = "Use mqtts:// with certificates (`broker.tls`), or keep the listener on loopback."
        yield CheckResult(
            "encryption", "warning", f"{broker.url} is plain text on a network: frames can be read", remedy
        )


def _certificates(broker: BrokerSection, config: NodeConfig | None) -> Iterator[CheckResult]:
    """The files that the links are made with, and whether the certificate is this node's."""
    from hedgerow.pki.inspect import Life, examine

    tls, now = broker.tls, datetime.now(UTC)
    user = f"{config.node.site}/{config.node.name}" if config is not None and tls.cert_file is not None else None
    grave = False
    for trouble in examine(now, tls.cert_file, tls.key_file, tls.ca_file, tls.crl_file, user):
        grave |= trouble.grave
        yield CheckResult("certificates", "failed" if trouble.grave else "warning", trouble.detail, trouble.remedy)
    if tls.cert_file is None:
        remedy = "Set `broker: {tls: {cert_file, key_file}}`; `hedgerow pki issue` makes them."
        yield CheckResult(
            "certificates", "warning", "this node has none: who it is rests on a password, or on nothing", remedy
        )
    elif not grave:
        life = Life.of(tls.cert_file)
        yield CheckResult("certificates", "ok", f"{life.name}, until {life.ends:%Y-%m-%d %H:%M} UTC")


def _told(limits: Any) -> str:
    """What the broker's CONNACK limits (MQTT 5 §3.2.2.3)."""
    packet = getattr(limits, "MaximumPacketSize", None)
    parts = [f"largest packet {size(packet) if packet else 'without limit'}"]
    parts.append(f"{getattr(limits, 'ReceiveMaximum', 65_535):,} QoS 1 messages under way to it")
    if getattr(limits, "MaximumQoS", 2) == 0:
        parts.append("QoS 0 only, frames can be lost")
    if not getattr(limits, "RetainAvailable", 1):
        parts.append("no retained messages, status will not be seen")
    return ", ".join(parts)


async def _round_trip(broker: BrokerSection, address: Address) -> tuple[Any, float | None, bool]:
    """Limits of the broker, milliseconds from us to us (None: nothing came), whether properties came along."""
    topic = address.topic(Channel.REPLY, f"doctor-{uuid.uuid4().hex[:12]}")
    async with connected(broker, timeout=5) as client:
        await client.subscribe(topic, qos=1)
        properties = publish_properties(ContentType="text/plain", UserProperty=[("id", "probe")])
        began = time.monotonic()
        await client.send(topic, b"probe", qos=1, properties=properties)
        try:
            async with asyncio.timeout(2):
                async for message in client.messages:
                    if payload_of(message) == b"probe":
                        kept = ("id", "probe") in user_properties(message)
                        return client.limits, (time.monotonic() - began) * 1e3, kept
        except TimeoutError:
            pass
        return client.limits, None, False
