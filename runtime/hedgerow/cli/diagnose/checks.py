"""The checks of `hedgerow doctor`. Each yields results; a HedgerowError becomes a failed one."""

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
from hedgerow.bus.causes import NothingListens
from hedgerow.cli.base.client import payload_of, publish_properties, user_properties
from hedgerow.cli.base.connection import broker_section, connected, explain
from hedgerow.cli.base.console import plural, size
from hedgerow.cli.diagnose import broker_version, disk_encryption
from hedgerow.config import BrokerSection, NodeConfig
from hedgerow.disk import why_unwritable
from hedgerow.errors import BackendMissing, HedgerowError
from hedgerow.models.serving.pool import ModelPool
from hedgerow.node.link.options import is_plain_text_on_network
from hedgerow.pipeline.chain.check import check_chains
from hedgerow.topics import Address, Channel

_LIBRARIES: Final = ("numpy", "pydantic", "aiomqtt")
_LOW_DISK: Final = 1 << 30
_MIN_DISK: Final = 100 << 20


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        check: name of the check.
        state: "warning" if it may be intended.
        detail: what was found.
        remedy: what to do about it; "" if nothing.
    """

    check: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def run_checks(url: str | None, config_file: Path | None) -> Iterator[CheckResult]:
    """Run all checks, cheapest first.

    Args:
        url: the broker's address, if given.
        config_file: a node's configuration, if given.
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
        yield from _chains(config, config_file.parent)
        yield CheckResult("disk encryption", *disk_encryption.check(_existing(_state_folder(config))))
    try:
        # An invalid file may still have a valid broker section; if not, that was reported above.
        broker = broker_section(url, config_file)
    except HedgerowError as error:
        if config_file is None or config is not None:
            yield _failed("broker", error)
        return
    yield from _broker(broker, config, _address_source(broker, url, config_file))
    yield from _encryption(broker)
    if broker.url.startswith(("mqtts:", "wss:")):
        yield from _certificates(broker, config)


def _address_source(broker: BrokerSection, url: str | None, config_file: Path | None) -> str:
    """Return what set the broker's address; "" if it is the default."""
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
    usable, present = cores(), os.cpu_count() or 1
    limited = (
        "" if usable == present else f" of {present}; the affinity mask or the container's quota excludes the rest"
    )
    yield CheckResult("cores", "ok", f"{usable}{limited}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"


def _clock() -> CheckResult:
    now = datetime.now(UTC)
    time_text = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if not 2026 <= now.year < 2100:
        return CheckResult(
            "clock", "failed", time_text, "Set the clock: until then frames expire and certificates are invalid."
        )
    try:
        shown = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],  # noqa: S607 - found in the PATH
            capture_output=True,
            text=True,
            timeout=3,
            check=False,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    if shown == "no":
        remedy = "Enable it (`timedatectl set-ntp true`): latency and expiry compare clocks of several machines."
        return CheckResult("clock", "warning", f"{time_text}, not synchronised", remedy)
    return CheckResult("clock", "ok", f"{time_text}, {'synchronised' if shown == 'yes' else 'synchronisation unknown'}")


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
            "backends",
            "failed",
            "none is installed, so no model can run",
            "Run `pip install 'hedgerow[onnx,openvino]'`.",
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
            "stages", "warning", detail, "`hedgerow plugin list` shows the reasons; other stages are not affected."
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
    shown = subprocess.run([binary, "-h"], capture_output=True, text=True, timeout=5, check=False).stdout  # noqa: S603 - a path from find_mosquitto
    words = shown.partition("\n")[0].split()
    return CheckResult("mosquitto", "ok", f"{words[2] if len(words) > 2 else '(unknown version)'}, {binary}")


def _state_folder(config: NodeConfig | None) -> Path:
    return (config.node.state_dir if config else Path(".hedgerow")).absolute()


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _disk(config: NodeConfig | None = None) -> CheckResult:
    folder = _state_folder(config)
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{size(free)} free for {folder}"
    if (problem := why_unwritable(folder)) is not None:
        why, remedy = problem
        return CheckResult(
            "disk", "failed", f"{folder} is not writable: {why}", f"{remedy} The setting is `node.state_dir`."
        )
    if free < _MIN_DISK:
        return CheckResult("disk", "failed", detail, "Free some space, or set `node.state_dir` to another disk.")
    if free < _LOW_DISK:
        return CheckResult("disk", "warning", detail, "Free some space: compiled models take some 100 MB.")
    return CheckResult("disk", "ok", detail)


def _models(config: NodeConfig, base_dir: Path) -> Iterator[CheckResult]:
    pool = ModelPool(cores=config.node.threads or cores())  # no folder: a check leaves no files behind
    try:
        for name, model in config.models.items():
            check = f"model {name}"
            started = time.monotonic()
            try:
                slot = pool.acquire(name, model, base_dir)
            except HedgerowError as error:
                yield _failed(check, error)
                continue
            info = slot.info()
            loading = f"loaded in {time.monotonic() - started:.1f} s"
            detail = f"{info.backend} {info.backend_version} on {info.device}, {', '.join(info.inputs)}, {loading}"
            pool.release(slot)
            if info.degraded:
                remedy = "Install the device's driver, or configure a device that this machine has."
                yield CheckResult(check, "warning", f"{detail}; {info.degraded}", remedy)
            else:
                yield CheckResult(check, "ok", detail)
    finally:
        pool.close()


def _chains(config: NodeConfig, base_dir: Path) -> Iterator[CheckResult]:
    for name, position, error, is_problem, remedy in check_chains(config, base_dir):
        stages = [stage.name for stage in config.pipelines[name].stages]
        if error is None:
            yield CheckResult(f"pipeline {name}", "ok", " → ".join(stages))
        elif is_problem:
            yield CheckResult(f"pipeline {name}", "failed", str(error), remedy)
        else:
            detail = f"not checked from stage {stages[position]} on: {error}"
            yield CheckResult(f"pipeline {name}", "warning", detail, remedy)


def _broker(broker: BrokerSection, config: NodeConfig | None, address_source: str) -> Iterator[CheckResult]:
    address = config.node.address if config else Address("local", "site", "doctor")
    try:
        if (problem := asyncio.run(explain(broker))) is not None:
            raise problem
        limits, trip_ms, preserved = asyncio.run(_round_trip(broker, address))
    except HedgerowError as error:
        if address_source:  # a broker is expected there
            yield CheckResult("broker", "failed", f"{error} (address from {address_source})", error.remedy)
        elif not isinstance(error, NothingListens):
            yield CheckResult("broker", "warning", str(error), error.remedy)
        else:
            detail = f"none at {broker.url}, the default, and no other address is set"
            remedy = "Start one, or set the address of your broker: --broker, `broker: {url: …}` or HEDGEROW_BROKER__URL. `hedgerow demo` starts its own."
            yield CheckResult("broker", "warning", detail, remedy)
        return
    yield CheckResult("broker", "ok", f"{broker.url}, MQTT 5; {_limits_text(limits)}")
    yield CheckResult("broker version", *broker_version.check(broker))
    if trip_ms is None:
        remedy = f"Let this user publish and subscribe below {address.topic(Channel.REPLY, '#')}; see the broker's ACL."
        yield CheckResult("round trip", "warning", "a published message was not delivered", remedy)
    elif not preserved:
        remedy = "A bridge or proxy may speak MQTT 3.1.1: set `bridge_protocol_version mqttv50`."
        yield CheckResult(
            "round trip", "failed", f"{trip_ms:.1f} ms, but MQTT 5 properties are lost in transit", remedy
        )
    else:
        yield CheckResult("round trip", "ok", f"{trip_ms:.1f} ms, MQTT 5 properties are preserved")


def _encryption(broker: BrokerSection) -> Iterator[CheckResult]:
    if is_plain_text_on_network(broker.url):
        remedy = "Use mqtts:// with certificates (`broker.tls`), or keep the listener on loopback."
        yield CheckResult(
            "encryption", "warning", f"{broker.url} is plain text on a network: others can read the frames", remedy
        )


def _certificates(broker: BrokerSection, config: NodeConfig | None) -> Iterator[CheckResult]:
    """Check the files of the TLS connection, and that the certificate is this node's."""
    from hedgerow.pki.inspect import Life, examine

    tls, now = broker.tls, datetime.now(UTC)
    user = f"{config.node.site}/{config.node.name}" if config is not None and tls.cert_file is not None else None
    fatal = False
    for trouble in examine(now, tls.cert_file, tls.key_file, tls.ca_file, tls.crl_file, user):
        fatal |= trouble.fatal
        yield CheckResult("certificates", "failed" if trouble.fatal else "warning", trouble.detail, trouble.remedy)
    if tls.cert_file is None:
        remedy = "Set `broker: {tls: {cert_file, key_file}}`; `hedgerow pki issue` creates them."
        yield CheckResult(
            "certificates",
            "warning",
            "this node has no certificate: the broker can identify it only by a password, if at all",
            remedy,
        )
    elif not fatal:
        life = Life.of(tls.cert_file)
        yield CheckResult("certificates", "ok", f"{life.name}, valid until {life.ends:%Y-%m-%d %H:%M} UTC")


def _limits_text(limits: Any) -> str:
    """Describe the limits in the broker's CONNACK (MQTT 5 §3.2.2.3)."""
    packet = getattr(limits, "MaximumPacketSize", None)
    parts = [f"largest packet {size(packet) if packet else 'unlimited'}"]
    parts.append(f"{getattr(limits, 'ReceiveMaximum', 65_535):,} QoS 1 messages in flight")
    if not getattr(limits, "RetainAvailable", 1):
        parts.append("no retained messages: the status of nodes is not seen")
    return ", ".join(parts)


async def _round_trip(broker: BrokerSection, address: Address) -> tuple[Any, float | None, bool]:
    """Publish a message to ourselves. Return the broker's limits, milliseconds (None: not delivered), whether properties survived."""
    topic = address.topic(Channel.REPLY, f"doctor-{uuid.uuid4().hex[:12]}")
    async with connected(broker, timeout=5) as client:
        await client.subscribe(topic, qos=1)
        properties = publish_properties(ContentType="text/plain", UserProperty=[("id", "probe")])
        sent_at = time.monotonic()
        await client.send(topic, b"probe", qos=1, properties=properties)
        try:
            async with asyncio.timeout(2):
                async for message in client.messages:
                    if payload_of(message) == b"probe":
                        preserved = ("id", "probe") in user_properties(message)
                        return client.limits, (time.monotonic() - sent_at) * 1e3, preserved
        except TimeoutError:
            pass
        return client.limits, None, False
