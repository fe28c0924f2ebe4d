"""What is fuzzed: each target reads bytes that a stranger may have chosen, and raises only its documented errors.

A target also asserts what must hold of everything that it accepts: read in pieces or whole, it is the same; written again and
read again, it is the same; a bundle passes only if nothing in it was changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from paho.mqtt import _packet as paho
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import ValidationError

from hedgerow import configfile
from hedgerow.backends.graphs.onnx_file import read_onnx
from hedgerow.backends.graphs.onnx_sizes import value_sized
from hedgerow.blobs.announcements import (
    AnnouncementKind,
    BadAnnouncement,
    decode_announcement,
    decode_document_part,
    decode_document_request,
)
from hedgerow.blobs.errors import ContentDamaged
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus import packets
from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.message import Message
from hedgerow.bus.outbox.epochs import EpochSpan
from hedgerow.bus.outbox.records import PRIORITIES, Ack
from hedgerow.bus.properties import (
    IN_PUBLISH,
    MalformedPacket,
    PublishProperties,
    decode_properties,
    encode_properties,
)
from hedgerow.bus.reader import Reader
from hedgerow.enrolment.answer import read_answer
from hedgerow.enrolment.claim import BadClaim, read_claim
from hedgerow.enrolment.grant import BadGrant, verify_grant
from hedgerow.enrolment.request import EnrolmentRefused, read_request
from hedgerow.errors import ConfigError, FrameError, HedgerowError, ModelUnreadable
from hedgerow.frame import Frame
from hedgerow.labels import parse_selector
from hedgerow.models.build.gguf import read_header
from hedgerow.models.bundle.arrays import BadArrays, read_array, read_arrays
from hedgerow.models.bundle.class_names import class_names
from hedgerow.models.bundle.folder import BadBundle, Bundle
from hedgerow.models.bundle.manifest import BadManifest, digest_of, read_manifest
from hedgerow.models.bundle.metadata import read_metadata
from hedgerow.pipeline.intake.stream_key import StreamKey
from hedgerow.region.collector.decode import decode_message
from hedgerow.stages.parse import Parse
from hedgerow.wire.codec import ENVELOPE, open_envelope, stated_meta, timestamp
from hedgerow.wire.document import decode_json, decode_msgpack
from hedgerow.wire.fleet import Desired, Reported
from hedgerow.wire.messages import Command, Reply, decode_payload, encode_json, frame_body
from hedgerow.wire.sniff import explained
from hedgerow.wire.trace import trace_context
from hedgerow.wire.wav import parse_wav

from . import seeds
from .seeds import scratch


@dataclass(frozen=True, slots=True)
class Target:
    """A reader under test.

    Attributes:
        run: reads some bytes, and asserts what must hold of them.
        errors: what it may raise.
        seeds: valid inputs to begin with.
        longest: longest input tried, in bytes.
    """

    run: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4096


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# MQTT


def reader(data: bytes) -> None:
    """Read a stream of packets in pieces of `data[0]` bytes, with a limit chosen by `data[1]`."""
    if len(data) < 3:
        return
    limit = (0, 16, 1000, 1 << 22)[data[1] % 4]
    whole, pieces = (_messages(data[2:], limit, cut) for cut in (len(data), 1 + data[0]))
    assert whole == pieces, f"{whole} read whole, {pieces} in pieces"


def _messages(stream: bytes, limit: int, cut: int) -> tuple[list[Any], bool]:
    """Return the fields of all messages, and whether the stream is malformed."""
    read: list[Any] = []
    reader = Reader(Acknowledgements(), limit, lambda kind, body: read.append((kind, bytes(body))))
    for start in range(0, len(stream), cut):
        piece = stream[start : start + cut]
        while piece:
            buffer = reader.buffer()
            assert len(buffer) > 0
            taken = min(len(buffer), len(piece))
            buffer[:taken] = piece[:taken]
            piece = piece[taken:]
            try:
                reader.advance(taken)
            except MalformedPacket:
                return sorted([*read, *map(_fields, reader.take())], key=repr), True
        read += map(_fields, reader.take())
    return sorted(read, key=repr), False


def _fields(message: Message) -> tuple[Any, ...]:
    assert message.payload == b"" or message.oversized is None
    try:
        users: list[tuple[str, str]] | None = message.properties.user_properties
    except FrameError:
        users = None
    message.topic.encode()
    payload, malformed = bytes(message.payload), message.malformed
    return message.topic, payload, message.qos, message.packet_id, message.oversized, malformed, users


def properties(data: bytes) -> None:
    """Decode properties: the decoder for every packet and the fast one for PUBLISH agree."""
    try:
        fast: PublishProperties | None = PublishProperties(data)
    except MalformedPacket:
        fast = None
    try:
        pairs = decode_properties(data)
    except MalformedPacket:
        assert fast is None
        raise
    with suppress(ValueError):  # texts that others may send, and this node does not
        assert decode_properties(encode_properties(pairs)) == pairs
    assert (fast is not None) == all(kind in IN_PUBLISH for kind, _ in pairs)


_PACKETS: Final = (
    packets.decode_connack,
    packets.decode_puback,
    packets.decode_suback,
    packets.decode_disconnect,
)


def control_packets(data: bytes) -> None:
    """Decode the body of a packet of the kind that `data[0]` chooses."""
    if data:
        _PACKETS[data[0] % len(_PACKETS)](data[1:])


def against_paho(data: bytes) -> None:
    """Decode a packet as Paho does, of which `data[0]` is the first byte: what both accept, they read alike."""
    if not data:
        return
    first, body = data[0], data[1:]
    try:
        other = _PAHO[first & 0xF0](first, body, MQTTProtocolVersion.MQTTv5)
    except Exception:  # noqa: BLE001 - of a library that is not under test
        return
    if first & 0xF0 == packets.PUBLISH:
        read, malformed = _messages(bytes([first]) + packets.encode_varint(len(body)) + body, 1 << 22, 1 << 22)
        if malformed or not read or read[0][-2] or read[0][-1] is None:
            return
        users = getattr(other.properties, "UserProperty", [])
        assert read == [(other.topic.decode(), other.payload, other.qos, other.mid, None, None, users)]
    elif first & 0xF0 == packets.CONNACK:
        ack = packets.decode_connack(body)
        assert (ack.session_present, ack.reason) == (bool(other.flags), other.rc)
    else:
        acked = (packets.decode_puback if first & 0xF0 == packets.PUBACK else packets.decode_suback)(body)
        codes = getattr(other, "reason_codes", None) or [other.reason]
        assert (acked.packet_id, acked.reasons) == (other.mid, tuple(code.value for code in codes))
        assert acked.text == getattr(other.properties, "ReasonString", "")


_PAHO: Final[dict[int, Callable[..., Any]]] = {
    packets.PUBLISH: paho.decode_publish,
    packets.CONNACK: paho.decode_connack,
    packets.PUBACK: paho.decode_puback,
    packets.SUBACK: paho.decode_suback,
}


# Frames


def envelope(data: bytes) -> None:
    """Open an envelope; what comes out identifies a result that can be published."""
    frame = Frame(data, id="1", stream="s", topic="t", content_type=ENVELOPE)
    stream = _BY_ENVELOPE(Message("t", data, 0, 0, 0.0, encode_properties(seeds.ENVELOPE_PROPERTIES)))
    opened = open_envelope(frame)
    assert opened.stream in (stream, frame.stream)
    encode_json(frame_body(opened))


_STREAM_KEYS: Final = tuple(StreamKey(config) for config in seeds.stream_configs())
_BY_ENVELOPE: Final = _STREAM_KEYS[0]


def stream_key(data: bytes) -> None:
    """Find the stream of a message by the rule that `data[0]` chooses."""
    if data:
        _STREAM_KEYS[data[0] % len(_STREAM_KEYS)](Message("a/b", data[1:], 0, 0, 0.0))


_PARSE: Final = seeds.parse_stages(Parse)


def parse(data: bytes) -> None:
    """Parse a payload with the content type and the settings that `data[0]` chooses."""
    if not data:
        return
    content_type, stage = _PARSE[data[0] % len(_PARSE)]
    stage.process(Frame(data[1:], id="1", stream="s", topic="t", content_type=content_type))


def documents(data: bytes) -> None:
    """Decode JSON, MessagePack, WAV, and payloads of which only the beginning is known."""
    decoders: tuple[Callable[[bytes], object], ...] = (
        lambda payload: decode_json(payload, (b'"v"',)),
        decode_msgpack,
        lambda payload: decode_payload(payload, "application/json"),
        lambda payload: decode_payload(payload, "application/msgpack"),
        lambda payload: parse_wav(payload).samples(),
        lambda payload: explained(FrameError("It is unreadable"), payload, "t"),
    )
    if data:
        decoders[data[0] % len(decoders)](data[1:])


def texts(data: bytes) -> None:
    """Read what senders and model files have as text: times, trace contexts, content types, names of classes."""
    text = _text(data)
    stated_meta(text)
    names = class_names({"names": text})
    assert all(isinstance(name, str) for name in names)
    read_metadata({"hedgerow.labels": text, "stride": text, "license": text, "hedgerow.x": text})
    context = trace_context(text)
    assert context is None or len(context) == 55
    assert abs(timestamp(text)) < 1e11


# Models


def manifest(data: bytes) -> None:
    """Read a manifest; one that is JSON is also read in its canonical form, which mutations seldom keep."""
    try:
        canonical = orjson.dumps(orjson.loads(data), option=orjson.OPT_SORT_KEYS)
    except ValueError:
        canonical = data
    read = read_manifest(canonical)
    again = read_manifest(read.encode())
    assert again.encode() == read.encode()
    for variant in read.variants:
        read.files_for(variant)


def onnx(data: bytes) -> None:
    """Read the graph of an ONNX file, and search it for operators whose output's size depends on values."""
    path = scratch() / "model.onnx"
    path.write_bytes(data)
    value_sized(read_onnx(path))


def gguf(data: bytes) -> None:
    """Read the header of a GGUF file."""
    path = scratch() / "model.gguf"
    path.write_bytes(data)
    header = read_header(path)
    assert header.precision


def arrays(data: bytes) -> None:
    """Read an .npz or .npy file."""
    path = scratch() / "arrays"
    path.write_bytes(data)
    if data.startswith(b"PK"):
        read_arrays(path)
    else:
        read_array(path)


def bundle(data: bytes) -> None:
    """Change a bundle's folder as `data` says: it is refused unless all files are as they were."""
    folder = scratch() / "bundle"
    if not folder.exists():
        seeds.write_bundle(folder)
    before = _content(folder)
    seeds.tamper(folder, data)
    after = _content(folder)
    accepted = _is_accepted(folder, digest_of(before["manifest.json"]))
    _is_accepted(folder, None)  # another manifest may be as good, but it has another digest
    if after != before:
        shutil.rmtree(folder)
    assert accepted == (_files(after) == _files(before))


def _is_accepted(folder: Path, digest: str | None) -> bool:
    try:
        Bundle.open(folder, digest).verify()
    except (BadBundle, BadManifest):
        return False
    return True


def _content(folder: Path) -> dict[str, Any]:
    """Return the content of all files below a folder; for links, where they lead; for folders, that they are there."""
    return {
        str(path.relative_to(folder)): f"→ {path.readlink()}"
        if path.is_symlink()
        else "folder"
        if path.is_dir()
        else path.read_bytes()
        for path in folder.rglob("*")
    }


def _files(content: dict[str, Any]) -> dict[str, bytes | str]:
    return {name: what for name, what in content.items() if what != "folder"}  # an empty folder harms no one


def store(data: bytes) -> None:
    """Damage a store's folder while a bundle is fetched: what is installed in the end is the bundle."""
    folder = scratch() / "store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content, files, chunks = seeds.bundle_to_fetch()
    store = BlobStore(folder, 1 << 22)
    for number, step in enumerate(data[:24]):
        if step < 128:
            digest, chunk = chunks[step % len(chunks)]
            store.missing(files)
            with suppress(ContentDamaged):
                store.put(digest, chunk if step < 112 else bytes([step]) + chunk[1:])
        elif step < 224:
            seeds.damage(folder, step, number)
        else:
            store = BlobStore(folder, 1 << 22)
    for missing in store.missing(files):
        store.put(missing.digest, dict(chunks)[missing.digest])
    for missing in store.check(files):
        store.missing(files)
        store.put(missing.digest, dict(chunks)[missing.digest])
    installed = store.install(content, files)
    Bundle.open(installed).verify()


# Fleet and configuration


def selector(data: bytes) -> None:
    """Parse a selector; written again it selects the same."""
    parsed = parse_selector(_text(data))
    assert str(parse_selector(str(parsed))) == str(parsed)
    for labels in ({}, {"site": "hall", "ring": "late"}):
        assert parsed.matches(labels) == (parsed.why_not(labels) is None)


def desired(data: bytes) -> None:
    """Read a desired document; written again it is the same."""
    read = Desired.model_validate_json(data)
    assert Desired.model_validate_json(read.encode()) == read


def reported(data: bytes) -> None:
    """Read a reported document; written again it is the same."""
    read = Reported.model_validate_json(data)
    assert Reported.model_validate_json(read.encode()) == read


def commands(data: bytes) -> None:
    """Read a command or a reply."""
    if data[:1] == b"\x00":
        Reply.model_validate_json(data[1:])
    else:
        Command.model_validate_json(data)


_SPAN: Final = EpochSpan("abc", (7,) * PRIORITIES, (1000,) * PRIORITIES)


def acknowledgement(data: bytes) -> None:
    """Decode an acknowledgement and translate it into keys of an epoch, all of which belong to it."""
    try:
        ack = Ack.decode(data)
    except ValueError:
        return
    assert Ack.decode(ack.encode()) == ack
    acked = _SPAN.translated(ack, (1001,) * PRIORITIES)
    ends = [key for pair in acked.ranges for key in pair]
    assert all(_SPAN.has(key) for key in ends + [key for key, _ in acked.held or ()])


def announcements(data: bytes) -> None:
    """Decode what nodes of a site tell each other about chunks, and after a byte 3 what the region acknowledges."""
    if not data:
        return
    if data[0] == 3:
        acknowledgement(data[1:])
        return
    match data[0] % 3:
        case 0:
            read = decode_announcement(AnnouncementKind.WANT, data[1:])
            assert decode_announcement(AnnouncementKind.WANT, read.encode()) == read
        case 1:
            decode_document_request(data[1:])
        case _:
            decode_document_part(data[1:])


def records(data: bytes) -> None:
    """Decode a message to the region's collector: whatever it is, it becomes a record."""
    if len(data) < 2:
        return
    topic, size = seeds.TOPICS[data[0] % len(seeds.TOPICS)], data[1]
    message = Message(topic, data[2 + size :], data[0] & 1, 0, 0.0, data[2 : 2 + size])
    decode_message(message, "north", 1e9)


def enrolment_request(data: bytes) -> None:
    """Read a request to enrol; one that is accepted proves its key and is from the client of its topic."""
    read = read_request(data, seeds.CLIENT, "north", "hall")
    assert (read.body.client, read.body.site) == (seeds.CLIENT, "hall")
    assert all(text.isprintable() for text in read.body.machine.values())


def claim(data: bytes) -> None:
    """Read the token of a claim; written again it is the same."""
    read = read_claim(_text(data))
    assert read_claim(read.token()) == read


def enrolment_answer(data: bytes) -> None:
    """Read the answer to a machine that enrols, and the grant in it: only the one that was signed counts."""
    answer = read_answer(data)
    assert answer.detail.isprintable()
    assert answer.code.isprintable()
    estate = seeds.enrolment()
    grant = verify_grant(answer.grant, answer.signature, estate.root, estate.key.public_key(), "hall")
    assert grant == estate.grant


def configuration(data: bytes) -> None:
    """Read a configuration file."""
    configfile.parse(_text(data), Path("/nowhere/config.yaml"))


TARGETS: Final[dict[str, Target]] = {
    "reader": Target(reader, (), seeds.streams),
    "properties": Target(properties, (MalformedPacket,), seeds.encoded_properties, 512),
    "control-packets": Target(control_packets, (MalformedPacket,), seeds.control_packets, 512),
    "against-paho": Target(against_paho, (MalformedPacket,), seeds.packets_of_a_broker, 512),
    "envelope": Target(envelope, (FrameError,), seeds.envelopes),
    "stream-key": Target(stream_key, (FrameError,), seeds.keyed, 16_384),
    "parse": Target(parse, (FrameError,), seeds.payloads),
    "documents": Target(documents, (FrameError,), seeds.documents),
    "texts": Target(texts, (FrameError,), seeds.texts, 2048),
    "manifest": Target(manifest, (BadManifest,), seeds.manifests, 16_384),
    "onnx": Target(onnx, (ValueError, OSError), seeds.onnx_files, 8192),
    "gguf": Target(gguf, (ModelUnreadable,), seeds.gguf_files),
    "arrays": Target(arrays, (BadArrays,), seeds.array_files),
    "bundle": Target(bundle, (), seeds.tamperings, 256),
    "store": Target(store, (HedgerowError,), seeds.store_steps, 24),
    "selector": Target(selector, (ConfigError,), seeds.selectors, 1024),
    "desired": Target(desired, (ValidationError,), seeds.desired_documents, 8192),
    "reported": Target(reported, (ValidationError,), seeds.reported_documents, 8192),
    "commands": Target(commands, (ValidationError,), seeds.commands),
    "announcements": Target(announcements, (BadAnnouncement,), seeds.announcements),
    "records": Target(records, (), seeds.records),
    "enrolment-request": Target(enrolment_request, (EnrolmentRefused,), seeds.enrolment_requests, 8192),
    "claim": Target(claim, (BadClaim,), seeds.claims, 2048),
    "enrolment-answer": Target(enrolment_answer, (BadGrant,), seeds.enrolment_answers, 8192),
    "configuration": Target(configuration, (configfile.BadConfigFile,), seeds.configurations, 4096),
}
"""By name: what is read."""
