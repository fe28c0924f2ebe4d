"""Valid inputs of the targets, written by the code that writes them in earnest, or as users do."""

from __future__ import annotations

import atexit
import io
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import msgpack
import numpy as np
import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from ruamel.yaml import YAML

from hedgerow.blobs.announcements import Announcement, AnnouncementKind, DocumentPart, DocumentRequest
from hedgerow.bus import packets
from hedgerow.bus.outbox.records import Ack
from hedgerow.bus.properties import Property, encode_properties, encode_varint
from hedgerow.config import PipelineConfig
from hedgerow.enrolment.answer import Answer
from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.grant import NodeGrant, sign_grant
from hedgerow.enrolment.request import RequestBody, encode_request
from hedgerow.models.bundle.arrays import write_arrays
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.manifest import Chunk, File, Manifest, digest_of
from hedgerow.models.bundle.model_file import digest
from hedgerow.pki import certificates
from hedgerow.pki.names import IdentityKind
from hedgerow.stage import Stage
from hedgerow.wire.codec import ENVELOPE, NPY, pack_envelope
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined, Reported, ReportedModel
from hedgerow.wire.messages import ErrorBody

ROOT: Final = Path(__file__).parents[2]
DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENVELOPE_PROPERTIES: Final = {Property.CONTENT_TYPE: ENVELOPE}


@cache
def scratch() -> Path:
    """Return a folder for files; removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="hedgerow-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# MQTT


def encoded_properties() -> Iterator[bytes]:
    """Properties of messages, acknowledgements and connections."""
    yield encode_properties([(Property.USER, ("id", "7")), (Property.USER, ("traceparent", TRACE))])
    yield encode_properties({Property.CONTENT_TYPE: "image/jpeg", Property.EXPIRY: 60, Property.TOPIC_ALIAS: 3})
    yield encode_properties({Property.RESPONSE_TOPIC: "a/b", Property.CORRELATION_DATA: b"\0\1"})
    yield encode_properties({Property.REASON_STRING: "no", Property.RECEIVE_MAXIMUM: 20, Property.SUBSCRIPTION_ID: 200})


def streams() -> Iterator[bytes]:
    """Packets as a broker sends them."""
    users = encode_properties([(Property.USER, ("k", "v"))])
    stream = b"".join(
        packets.encode_publish_head(topic, len(payload), qos=qos, packet_id=7 * qos, properties=users * qos) + payload
        for topic, payload, qos in (("a/b", b"payload", 1), ("plant/é", b"x" * 40, 0), ("c", b"", 1))
    )
    for cut in (2, 13, 200):
        yield bytes([cut, cut]) + stream + b"\xd0\x00" + b"\x40\x02\x00\x07" + stream


def control_packets() -> Iterator[bytes]:
    """CONNACK, PUBACK, SUBACK and DISCONNECT."""
    text = encode_properties({Property.REASON_STRING: "quota"})
    tail = encode_varint(len(text)) + text
    yield b"\x00\x00\x00" + tail
    yield b"\x01\x00\x07\x10" + tail
    yield b"\x02\x00\x07" + tail + b"\x01\x87"
    yield b"\x03\x8e" + tail


def packets_of_a_broker() -> Iterator[bytes]:
    """Packets without their length."""
    for first, control in zip((0x20, 0x40, 0x90, 0xE0), control_packets(), strict=True):
        yield bytes([first]) + control[1:]
    for properties in encoded_properties():
        yield b"\x33\x00\x03a/b\x00\x07" + encode_varint(len(properties)) + properties + b"payload"
    yield b"\x30\x00\x01a\x00"


# Frames


def envelopes() -> Iterator[bytes]:
    """Frames with their own id, stream and time."""
    yield pack_envelope(b"1,2,3", content_type="text/csv", id="f1", stream="cam", captured_at=1.5e9, sequence=7)
    yield pack_envelope(b"\0" * 16, content_type="audio/l16; rate=8000; channels=1")
    yield msgpack.packb({"payload": b"x", "traceparent": TRACE, "captured_at": 1_700_000_000})


def stream_configs() -> list[PipelineConfig]:
    """Pipelines that find the stream in the topic, an envelope, JSON and MessagePack."""
    shared: dict[str, Any] = {"subscribe": ["a/#"], "stages": ["parse"]}
    rules: list[dict[str, Any]] = [
        {"content_type": ENVELOPE},
        {"stream": {"by": "field", "field": "camera"}, "content_type": "application/json"},
        {"stream": {"by": "field", "field": "camera"}, "content_type": "application/msgpack"},
        {"stream": {"by": "level", "level": 1}},
    ]
    return [PipelineConfig.model_validate({**shared, **rule}) for rule in rules]


def keyed() -> Iterator[bytes]:
    """Messages that name their stream, small and large."""
    for body in ({"camera": "c1", "v": 1}, {"v": ["x" * 5000], "camera": 3}, {"camera": "c", "p": "[{" * 2500}):
        yield b"\x01" + orjson.dumps(body)
        yield b"\x02" + msgpack.packb(body)
    yield b"\x00" + next(envelopes())


_PARSE: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (NPY, {}),
    ("application/json", {}),
    ("application/json", {"field": ["a", "b.c"], "missing": 0.0, "text": True}),
    ("application/json", {"tensors": {"x": "a", "y": "b"}, "dtype": "int64", "meta": {"rate": "r"}}),
    ("application/json", {"field": "v", "time": "t", "time_unit": "ms", "dtype": "float64"}),
    ("application/msgpack", {"missing": "drop"}),
    ("application/msgpack", {"field": "v", "dtype": "uint8", "text": True, "time": "t"}),
    ("text/csv", {}),
    ("text/csv", {"field": ["a", "b"], "delimiter": ";", "decimal": ",", "time": "t"}),
    ("text/csv", {"field": 1, "missing": 0.0, "dtype": "int32", "meta": {"rate": 0}}),
    ("", {"format": "raw", "dtype": "float16", "missing": "drop"}),
    ("application/x-unknown", {}),
)
"""Content types and settings of `parse`; the first byte of an input chooses."""


def parse_stages(stage: type[Stage[Any]]) -> list[tuple[str, Any]]:
    """Return content types, and stages that are set up."""
    stages = []
    for content_type, settings in _PARSE:
        made = stage(stage.config_type.model_validate({**settings, "meta": _names(settings.get("meta", {}))}))
        made.setup(None)  # type: ignore[arg-type] - it needs nothing of the node
        stages.append((content_type, made))
    return stages


def _names(meta: dict[str, Any]) -> dict[str, str]:
    return {name: str(source) for name, source in meta.items()}


def payloads() -> Iterator[bytes]:
    """Payloads for each of the settings of `parse`."""
    stream = io.BytesIO()
    np.save(stream, np.arange(6, dtype=np.float32).reshape(2, 3))
    bodies: list[Any] = [
        [1, 2.5, 3],
        {"a": [1, 2], "b": {"c": ["3", None]}},
        {"a": [1], "b": [2**60], "r": 8000},
        {"v": [1.25, -3], "t": 1_700_000_000_000},
        [[1, 2], [3, 4]],
        {"v": [1, "2"], "t": "2026-05-04T12:00:00Z"},
    ]
    yield b"\x00" + stream.getvalue()
    for number, body in enumerate(bodies):
        yield bytes([number + 1]) + (orjson.dumps(body) if number < 4 else msgpack.packb(body))
    yield b"\x01" + b'{"temperature": nan, "a": NaN, "b": -inf}'
    yield b"\x01" + b"\xef\xbb\xbf[1e400, 123456789012345678901234567890]"
    yield b"\x07" + b"1,2,3\n4,5,6\n"
    yield b"\x08" + b'a;b;t\n"1,5";2;2026-05-04T12:00:00Z\n'
    yield b"\x09" + b"0,NA\n1,2\n"
    yield b"\x0a" + np.arange(4, dtype=np.float16).tobytes()
    yield b"\x0b" + b"\x08\x01\x02\x03\x04\x05\x06\x12\x12spB"


def documents() -> Iterator[bytes]:
    """Documents of each kind."""
    yield b"\x00" + b'{"v": [1, 2], "w": {"v": 3}}'
    yield b"\x01" + msgpack.packb({"v": [1, b"2", 3.5], "t": msgpack.Timestamp(1, 2)})
    yield b"\x02" + b'{"ok":true}'
    yield b"\x03" + msgpack.packb({"ok": True})
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 52, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16_000, 2, 16)
    yield b"\x04" + head + struct.pack("<4sI", b"data", 16) + bytes(16)
    yield b"\x05" + b"\x1f\x8b\x08\x00"


def texts() -> Iterator[bytes]:
    """Times, content types, trace contexts and names of classes."""
    for text in (
        "2026-05-04T12:00:00Z",
        "1700000000.5",
        "20260504",
        "audio/l16; rate=8000; channels=1",
        TRACE,
        "{0: 'person', 1: \"bicycle\"}",
        '["a", "b"]',
        "person\ncar\n",
        "Apache-2.0 OR MIT",
    ):
        yield text.encode()


# Models


def _manifest(files: list[File], model_digest: str, name: str = "model.onnx") -> Manifest:
    listed = {file.path: file for file in files}
    golden = [file for file in files if file.path.startswith("golden/")]
    return Manifest.model_validate(
        {
            "schema": "hedgerow.model/1",
            "name": "doors",
            "version": "1.2.0-rc.1",
            "licence": "Apache-2.0",
            "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 3]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 3]}],
            "labels": ["open", "shut"],
            "parameters": {"size": [64, 64], "threshold": 0.5},
            "variants": [
                {
                    "name": "onnx",
                    "format": "onnx",
                    "precision": "fp32",
                    "files": [listed[f"variants/onnx/{name}"].model_dump()],
                    "model_digest": model_digest,
                    "needs": {"backends": ["onnxruntime"], "memory_bytes": 1000},
                    "tolerance": {"relative": 0.01, "outputs": {"y": 1.0}},
                    "accuracy": {"top1": 0.01},
                }
            ],
            "golden": [{"inputs": golden[0].model_dump(), "outputs": {"onnx": golden[1].model_dump()}}]
            if len(golden) > 1
            else [],
            "baseline": {
                "samples": 3,
                "outputs": {
                    "y": {
                        "values": 3,
                        "mean": 0.5,
                        "deviation": 0.1,
                        "minimum": 0,
                        "maximum": 1,
                        "edges": [0.2, 0.8],
                        "counts": [1, 1, 1],
                    }
                },
            },
            "provenance": {"author": "me", "made_from": [{"file": "a.onnx", "digest": DIGEST}]},
        }
    )


def write_bundle(folder: Path) -> None:
    """Write a small bundle."""
    model = folder / "variants/onnx/model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(Random(1).randbytes(700))
    names = ["golden/0.inputs.npz", "golden/onnx/0.outputs.npz"]
    for name in names:
        write_arrays(folder / name, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    files = [describe_file(folder / name, name) for name in ["variants/onnx/model.onnx", *names]]
    (folder / "manifest.json").write_bytes(_manifest(files, digest(model)).encode())


def manifests() -> Iterator[bytes]:
    """The manifest of that bundle."""
    folder = scratch() / "manifest"
    if not folder.exists():
        write_bundle(folder)
    yield (folder / "manifest.json").read_bytes()


def tamper(folder: Path, data: bytes) -> None:
    """Change a folder: every step is four bytes: what to do, with which file, where, and with what."""
    for at in range(0, min(len(data), 32) - 3, 4):
        what, which, where, value = data[at : at + 4]
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not paths:
            return
        path = paths[which % len(paths)]
        content = path.read_bytes()
        position = where * max(1, len(content)) // 256
        match what % 8:
            case 0:
                path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            case 1:
                path.write_bytes(content[:position])
            case 2:
                path.write_bytes(content + bytes([value]) * (where + 1))
            case 3:
                path.unlink()
            case 4:
                beside = path.parent / f"model.onnx{('.data', '_data', '2')[value % 3]}"
                if not beside.exists() and not beside.is_symlink():
                    beside.write_bytes(bytes([where]))
            case 5:
                path.unlink()
                path.symlink_to("/dev/zero" if value & 1 else paths[where % len(paths)])
            case 6:
                path.unlink()
                path.mkdir()
            case _:
                path.write_bytes(data[at:])


def tamperings() -> Iterator[bytes]:
    """One of each change."""
    yield b""
    for what in range(8):
        yield bytes([what, 1, 100, 7])
    yield bytes([0, 0, 10, 1, 4, 2, 1, 1])


@cache
def bundle_to_fetch() -> tuple[bytes, list[File], list[tuple[str, bytes]]]:
    """Return a manifest, its files, and their chunks by digest; two files share a chunk."""
    shared = Random(3).randbytes(500)
    files, chunks = [], {}
    for name, content in (("a.bin", Random(1).randbytes(1500)), ("model.onnx", shared + Random(2).randbytes(900))):
        pieces = [content[at : at + 500] for at in range(0, len(content), 500)]
        listed = tuple(Chunk(digest=digest_of(piece), size=len(piece)) for piece in pieces)
        chunks |= {digest_of(piece): piece for piece in pieces}
        files.append(File(path=f"variants/onnx/{name}", size=len(content), digest=digest_of(content), chunks=listed))
    manifest = _manifest(files, DIGEST)
    variant = manifest.variants[0].model_copy(update={"files": (files[1], files[0])})
    made = scratch() / "to-fetch"
    made.mkdir(exist_ok=True)
    (made / "model.onnx").write_bytes(b"".join(chunks[chunk.digest] for chunk in files[1].chunks))
    variant = variant.model_copy(update={"model_digest": digest(made / "model.onnx")})
    return manifest.model_copy(update={"variants": (variant,)}).encode(), files, list(chunks.items())


def damage(folder: Path, step: int, number: int) -> None:
    """Damage one file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        return
    path = paths[step % len(paths)]
    content = path.read_bytes()
    match number % 4:
        case 0:
            path.write_bytes(content[: len(content) // 2])
        case 1:
            path.write_bytes(bytes([step]) + content[1:])
        case 2:
            path.unlink()
        case _:
            path.write_bytes(b"\1" * len(content))


def store_steps() -> Iterator[bytes]:
    """Fetches with damage and restarts in between."""
    yield bytes([0, 1, 2, 3, 4, 5])
    yield bytes([0, 1, 130, 230, 2, 3, 140, 230, 150])
    yield bytes([120, 0, 200, 1, 210, 230])


def onnx_files() -> Iterator[bytes]:
    """Graphs with branches, functions, external weights and outputs sized by values."""
    import onnx
    import onnx.helper
    import onnx.parser

    def model(graph: str, tail: str = "") -> Any:
        return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "own": 1]>\n{graph}{tail}')

    yield model("g (float[N,3] x) => (float[N,3] y) { y = Add(x, x) }").SerializeToString()
    yield model("g (float[N,3] x) => (int64[2,M] y) { y = NonZero(x) }").SerializeToString()
    yield model(
        "g (bool c, float[3] x) => (float[3] y) { y = If (c) <then_branch = a () => (float[3] p) { p = Add(x, x) },"
        " else_branch = b () => (float[3] q) { q = own.f(x) }> }",
        '\n<domain: "own", opset_import: ["": 17]> f (v) => (w) { w = Neg(v) }',
    ).SerializeToString()
    outside = model("g (float[3] x) => (float[3] y) <float[3] w = {1,2,3}> { y = Add(x, w) }")
    tensor = outside.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    yield outside.SerializeToString()


def gguf_files() -> Iterator[bytes]:
    """Headers with each kind of value, and a tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    keys += text("general.file_type") + struct.pack("<II", 4, 15)
    keys += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    keys += text("scores") + struct.pack("<IIQ", 9, 6, 2) + bytes(8)
    tensor = text("w") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0)
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 4) + keys + tensor
    yield content + bytes(-len(content) % 32 + 256)


def array_files() -> Iterator[bytes]:
    """An .npz and an .npy file."""
    path = scratch() / "seed.npz"
    write_arrays(path, {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "flags": np.array([True, False])})
    yield path.read_bytes()
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)))
    yield stream.getvalue()


# Fleet and configuration


def selectors() -> Iterator[bytes]:
    """Each operator."""
    yield b"site=shop-12, hardware in (jetson, nuc), !spare, ring!=late"
    yield b"camera, ring notin (a, b,), x==1"
    yield b""


_REF: Final = ModelRef(name="doors", version="1.2.0", digest=DIGEST)


def desired_documents() -> Iterator[bytes]:
    """A document with everything, and a minimal one."""
    yield Desired(node="north/hall/n1", generation=1, at=1.5).encode()
    yield Desired.model_validate(
        {
            "node": "north/hall/n1",
            "generation": 7,
            "at": 1.7e9,
            "expires_at": 1.8e9,
            "models": {"doors": _REF.model_dump()},
            "pipelines": {"a": {"queue": {"max_age_s": 2}}, "b": None},
            "labels": {"ring": "early"},
            "swap": {"shadow_s": 10, "split_percent": 20, "split_s": 5, "memory": "brief-gap"},
            "rollout": "doors-1.2",
        }
    ).encode()


def reported_documents() -> Iterator[bytes]:
    """What a node reports during a swap."""
    yield Reported(node="north/hall/n1", session="s", at=1.5).encode()
    yield Reported(
        node="north/hall/n1",
        session="s",
        at=1.7e9,
        generation=7,
        state="in-progress",
        step="fetch doors",
        progress=0.5,
        error=ErrorBody(code="bad-model", message="no", remedy="yes"),
        rolled_back=["doors"],
        configured={"doors": ""},
        models={
            "doors": ReportedModel(
                model=_REF, variant="onnx", file_digest=DIGEST, backend="onnxruntime", device="CPU", since=1.0
            )
        },
        quarantined=[Quarantined(digest=DIGEST, name="doors", version="1.1.0", code="c", reason="r", at=1.0)],
        labels={"site": "hall"},
    ).encode()


def commands() -> Iterator[bytes]:
    """A command and a reply."""
    yield b'{"args": {"pipeline": "doors", "on": true}, "expires_at": 1750000000.5}'
    yield b"\x00" + b'{"schema":"hedgerow.reply/1","node":"n","command":"ping","at":1.5,"ok":true,"value":{"a":[1]}}'


def announcements() -> Iterator[bytes]:
    """One of each kind."""
    yield b"\x00" + Announcement(AnnouncementKind.WANT, "0123456789abcdef", ("ab" * 32,), ("n2",)).encode()
    yield b"\x01" + DocumentRequest("metadata/1.root.json", 10).encode()
    yield b"\x02" + DocumentPart("metadata/1.root.json", 10, 20, b"x" * 10).encode()
    yield b"\x03" + Ack("abc", {0: 9}, {0: [(11, 12)]}, {0: [(8, 1), (9, -2), (11, None), (12, None)], 4: []}).encode()


_CHANNELS: Final = ("result/doors", "event/gap", "event/link-lost", "health", "status", "reported", "dead/doors")
TOPICS: Final = ("else", *(f"hedgerow/v1/north/hall/n1/{tail}" for tail in _CHANNELS))


def records() -> Iterator[bytes]:
    """Messages to the region's collector, with their properties."""
    numbered = encode_properties([(Property.USER, ("number", "abc/1/7")), (Property.USER, ("id", "r1"))])
    as_json = encode_properties({Property.CONTENT_TYPE: "application/json"})
    result = orjson.dumps({"id": "r1", "at": 1.7e9, "frame": {"captured_at": 1.7e9}, "result": {"n": 1}})
    bodies = [
        result,
        orjson.dumps({"at": 1.7e9, "epoch": "abc", "first": 1, "last": 5, "reasons": {"full": 5}}),
        orjson.dumps({"at": 1.7e9, "kind": "link-lost"}),
        orjson.dumps({"schema": "hedgerow.health/1", "node": "n1", "at": 1.7e9, "session": "s", "state": "ok"}),
        orjson.dumps({"node": "n1", "state": "online", "session": "s"}),
        next(reported_documents()),
    ]
    again = [
        ("number", "def/1/1"),
        ("id", "r1"),
        ("was", "abc/1/7"),
        ("was", "ab/1/9"),
        ("ended", "abc 1:7 4:2"),
        ("ack", "now"),
    ]
    raw = encode_properties([(Property.USER, pair) for pair in again]) + as_json
    yield bytes([1, len(raw)]) + raw + result
    for number, body in enumerate(bodies):
        raw = numbered + (as_json if number == 0 else b"")
        yield bytes([number + 1, len(raw)]) + raw + body


def configurations() -> Iterator[bytes]:
    """The sections of the examples that come with Hedgerow, and files with anchors, quotes and a mistake."""
    for name in ("demo", "plant", "shop"):
        content = YAML(typ="safe").load((ROOT / "configs" / f"{name}.yaml").read_text("utf-8"))
        for section, entries in content.items():
            several = section in ("pipelines", "models") and isinstance(entries, dict)
            for one in [{key: value} for key, value in entries.items()] if several else [entries]:
                stream = io.BytesIO()
                YAML().dump({section: one}, stream)
                yield stream.getvalue()
    yield b"node: {name: gateway, site: hall}\npipelines:\n  a: &a {subscribe: 'x/#', stages: [parse]}\n  b: *a\n"
    yield b'node:\n  name: "g"\nqueue: {max_age_s: -1}\n'


CLIENT: Final = "0123456789abcdef" * 2


@dataclass(frozen=True)
class EnrolmentSeed:
    """A machine, the authorities of its region and site, and what it is granted."""

    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    grant: NodeGrant
    text: str
    signature: str


@cache
def enrolment() -> EnrolmentSeed:
    """Authorities with the same keys in each run."""
    own, top, site = (ec.derive_private_key(number, ec.SECP256R1()) for number in (11, 12, 13))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    root = certificates.root("north", top, now)
    authority = certificates.authority("hall", site.public_key(), root, top, now)
    leaf = certificates.leaf(
        IdentityKind.NODE, "hall/a", "node", own.public_key(), authority, site, now, now + timedelta(days=30)
    )
    grant = NodeGrant(
        schema="hedgerow.grant/1",
        node="north/hall/a",
        certificate=certificates.pem(leaf, authority).decode(),
        trust=certificates.pem(root, authority).decode(),
        revocations="",
        configuration="pipelines: {}\n",
        files={"root.json": "e30="},
        labels={"hardware": "nuc"},
    )
    return EnrolmentSeed(own, root, grant, *sign_grant(grant, site))


def claims() -> Iterator[bytes]:
    """A token."""
    yield Claim("0" * 16, "north", "hall", "mqtts://broker.hall.lan:8884", enrolment().root, bytes(32)).token().encode()


def enrolment_requests() -> Iterator[bytes]:
    """With a claim, and without."""
    key = enrolment().key
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    body = RequestBody(
        schema="hedgerow.enrol/1",
        client=CLIENT,
        region="north",
        site="hall",
        claim="0" * 16,
        csr=csr.public_bytes(Encoding.PEM).decode(),
        machine={"hostname": "gw", "serial": "1"},
    )
    claim = Claim("0" * 16, "north", "hall", "mqtts://b", enrolment().root, bytes(32))
    yield encode_request(body, lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())), claim.sign)
    yield encode_request(
        body.model_copy(update={"claim": None}),
        lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())),
        maker=lambda data: data[:8],
        certificates=[enrolment().root],
    )


def enrolment_answers() -> Iterator[bytes]:
    """Approved, pending and refused."""
    made = enrolment()
    yield Answer(schema="hedgerow.enrolled/1", state="approved", grant=made.text, signature=made.signature).encode()
    yield Answer(schema="hedgerow.enrolled/1", state="pending", code="pending", again_s=2.0).encode()
    yield Answer(schema="hedgerow.enrolled/1", state="refused", code="claim-used", detail="used").encode()
