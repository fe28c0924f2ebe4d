"""Sound files as recorders, pipes and editors write them: each is read with the right samples, or refused by name.

What is right is computed independently: by Python's `wave`, by SciPy, or from the tone that was written.
"""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import FrameError
from hedgerow.testing import frame, run_stage
from hedgerow_audio.pcm import Pcm16

RATE = 16_000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 10) / RATE)
GUID = bytes.fromhex("000000001000800000aa00389b71")
UNKNOWN = 0xFFFF_FFFF


def pcm(bits: int) -> bytes:
    """The tone as PCM."""
    if bits == 8:
        return np.round(TONE * 127 + 128).astype(np.uint8).tobytes()
    whole = np.round(TONE * (2 ** (bits - 1) - 1)).astype("<i4")
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)


def form(tag: int = 1, bits: int = 16, channels: int = 1, rate: int = RATE, width: int | None = None) -> bytes:
    width = channels * bits // 8 if width is None else width
    return struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)


def extensible(tag: int, bits: int, valid: int, guid: bytes = GUID) -> bytes:
    return form(0xFFFE, bits) + struct.pack("<HHIH", 22, valid, 4, tag) + guid


def riff(*chunks: bytes, size: int | None = None, magic: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


FMT, DATA = chunk(b"fmt ", form()), chunk(b"data", pcm(16))
LIST = chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf\0")  # of odd length, so padded
FLOAT32, FLOAT64 = TONE.astype("<f4").tobytes(), TONE.astype("<f8").tobytes()

READ = {
    "8 bits": riff(chunk(b"fmt ", form(bits=8)), chunk(b"data", pcm(8))),
    "16 bits": riff(FMT, DATA),
    "24 bits": riff(chunk(b"fmt ", form(bits=24)), chunk(b"data", pcm(24))),
    "32 bits": riff(chunk(b"fmt ", form(bits=32)), chunk(b"data", pcm(32))),
    "float": riff(chunk(b"fmt ", form(3, 32)), chunk(b"data", FLOAT32)),
    "float with a fact chunk": riff(chunk(b"fmt ", form(3, 32) + b"\0\0"), chunk(b"fact", b"\0\x06\0\0"), chunk(b"data", FLOAT32)),
    "double": riff(chunk(b"fmt ", form(3, 64)), chunk(b"data", FLOAT64)),
    "extensible, 16 bits": riff(chunk(b"fmt ", extensible(1, 16, 16)), DATA),
    "extensible, 24 bits": riff(chunk(b"fmt ", extensible(1, 24, 24)), chunk(b"data", pcm(24))),
    "extensible, 20 of 24 bits": riff(chunk(b"fmt ", extensible(1, 24, 20)), chunk(b"data", pcm(24))),
    "extensible, float": riff(chunk(b"fmt ", extensible(3, 32, 32)), chunk(b"data", FLOAT32)),
    "a longer format chunk": riff(chunk(b"fmt ", form() + b"\0\0"), DATA),
    "a list in front": riff(LIST, FMT, DATA),
    "a list between": riff(FMT, LIST, DATA),
    "a list behind": riff(FMT, DATA, LIST),
    "junk to align": riff(chunk(b"JUNK", bytes(27)), FMT, DATA),
    "the format behind the samples": riff(DATA, FMT),
    "Broadcast WAV": riff(chunk(b"bext", bytes(603)), FMT, DATA),
    "a pipe of FFmpeg": riff(FMT, LIST, chunk(b"data", pcm(16), UNKNOWN), size=UNKNOWN),
    "a pipe of GStreamer": riff(FMT, chunk(b"data", pcm(16), 0), size=0),
    "a header written first": riff(FMT, chunk(b"data", pcm(16), 0), size=36),
    "a pipe of SoX": riff(FMT, chunk(b"data", pcm(16), 0x7FFF_F000), size=0x7FFF_F024),
    "a pipe of arecord": riff(FMT, chunk(b"data", pcm(16), 0x8000_0000), size=0x8000_0024),
    "a pipe of 24 bits": riff(chunk(b"fmt ", form(bits=24)), chunk(b"data", pcm(24), 0), size=UNKNOWN),
    "RF64": riff(chunk(b"ds64", struct.pack("<QQQI", 0, len(pcm(16)), 0, 0)), FMT, chunk(b"data", pcm(16), UNKNOWN), LIST, magic=b"RF64", size=UNKNOWN),
    "a size of RIFF that is wrong": riff(FMT, DATA, size=4),
    "bytes behind the file": riff(FMT, DATA) + b"\0\0\0",
}  # fmt: skip

REFUSED = {
    "cut off": (riff(FMT, DATA)[:-100], "truncated-samples", "has 3100 of its 3200 bytes"),
    "cut within a sample": (riff(FMT, chunk(b"data", pcm(16)[:-1])), "truncated-samples", "3199 bytes are not a whole number"),
    "a pipe cut within a sample": (riff(FMT, chunk(b"data", pcm(16), 0))[:-1], "truncated-samples", "3199 bytes"),
    "no samples": (riff(FMT, chunk(b"data", b"")), "bad-wav", "it has no samples"),
    "no samples, but a list": (riff(FMT, chunk(b"data", b""), LIST), "bad-wav", "it has no samples"),
    "a pipe without samples": (riff(FMT, chunk(b"data", b"", UNKNOWN)), "bad-wav", "it has no samples"),
    "no chunk of samples": (riff(FMT, LIST), "bad-wav", "it has no samples"),
    "no format": (riff(DATA), "bad-wav", "it has no format"),
    "a format that is cut off": (riff(chunk(b"fmt ", form()[:10]), DATA), "bad-wav", "cut off"),
    "two blocks of samples": (riff(FMT, DATA, DATA), "bad-wav", "more than one block"),
    "A-law": (riff(chunk(b"fmt ", form(6, 8)), DATA), "bad-wav", "A-law (format 0x6)"),
    "µ-law": (riff(chunk(b"fmt ", form(7, 8)), DATA), "bad-wav", "µ-law"),
    "ADPCM": (riff(chunk(b"fmt ", form(2, 4, width=1024)), DATA), "bad-wav", "ADPCM"),
    "MP3": (riff(chunk(b"fmt ", form(0x55, 0, width=1)), DATA), "bad-wav", "MP3"),
    "12 bits": (riff(chunk(b"fmt ", form(1, 12, width=2)), DATA), "bad-wav", "PCM of 12 bits"),
    "24 bits in 4 bytes, either way round": (riff(chunk(b"fmt ", form(1, 24, width=4)), DATA), "bad-wav", "do not fit its 4 bytes"),
    "half floats": (riff(chunk(b"fmt ", form(3, 16)), DATA), "bad-wav", "floats of 16 bits"),
    "B-format": (riff(chunk(b"fmt ", extensible(1, 16, 16, bytes.fromhex("0000000721d3118644c8c1ca00000000")[:14])), DATA), "bad-wav", "unknown kind"),
    "no channels": (riff(chunk(b"fmt ", form(channels=0, width=2)), DATA), "bad-wav", "0 channels"),
    "big-endian": (riff(FMT, DATA, magic=b"RIFX"), "bad-wav", "begins 52 49 46 58"),
    "AVI": (b"RIFF\x10\0\0\0AVI LIST", "bad-wav", "begins 52 49 46 46"),
    "nothing": (b"RIFF", "bad-wav", "begins 52 49 46 46"),
    "a cut table of sizes": (READ["RF64"][:20], "bad-wav", "it has no format"),
    "a rate of 0": (riff(chunk(b"fmt ", form(rate=0)), DATA), "bad-rate", "'0' is not a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("content_type", ["audio/wav", ""])
def test_a_file_gives_its_tone(name: str, content_type: str) -> None:
    run = run_stage(Pcm16, [frame(READ[name], content_type=content_type)], rate=8000)

    assert run.errors == []
    (out,) = run.out
    assert out.array.dtype == np.float32
    assert out.meta == {"rate": RATE}
    np.testing.assert_allclose(out.array, TONE, atol=0.01 if name == "8 bits" else 1 / 16384)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_says_why(name: str) -> None:
    payload, code, said = REFUSED[name]

    run = run_stage(Pcm16, [frame(payload, content_type="audio/wav")])

    assert run.dead == {code: 1}
    assert said in str(run.errors[0])


@pytest.mark.parametrize(
    ("magic", "kind"),
    [(b"fLaC", "FLAC"), (b"OggS", "Ogg"), (b"ID3\x04", "MP3"), (b"FORM\0\0\0\x40AIFF", "AIFF"), (b"RIFX", "big-endian WAV"), (b".snd", "Sun"), (b"#!AMR\n", "AMR"), (b"\x1aE\xdf\xa3", "WebM"), (b"\x1f\x8b\x08\0", "gzip"), (b"\xff\xd8\xff\xe0", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\0\0\0\x20ftypM4A ", "00 00 00 20"), (b"\r\nRIFF\0\0\0\0WAVEfmt ", "0d 0a 52 49")],
)  # fmt: skip
@pytest.mark.parametrize("content_type", ["", "audio/pcm"])
def test_other_sound_is_not_taken_for_raw_samples(magic: bytes, kind: str, content_type: str) -> None:
    run = run_stage(Pcm16, [frame(magic + bytes(60), content_type=content_type)] * 2)

    assert run.dead == {"unknown-content-type": 2}
    assert kind in str(run.errors[0])


@pytest.mark.parametrize(
    "text", [b'{"rate": 16000, "samples": [0, 1]}', b'{\n  "audio": "UklGRg=="\n}', b"UklGRiQAAABXQVZFZm10IBAAAAABAAEA", b"volume: loud, rate: 16000\r\n"]
)  # fmt: skip
def test_text_is_not_taken_for_raw_samples(text: bytes) -> None:
    run = run_stage(Pcm16, [frame(text + b" " * (len(text) % 2))])

    assert run.dead == {"unknown-content-type": 1}
    assert "the payload is text" in str(run.errors[0])


@pytest.mark.parametrize(
    "samples", [bytes(640), b"\x00\x20" * 320, b"\xff\x7f\x01\x80" * 160, b"  " * 6, b"\x1f\x8b" * 40]
)
def test_silence_and_square_waves_are_samples(samples: bytes) -> None:
    assert run_stage(Pcm16, [frame(samples)]).errors == []


def test_floats_that_were_not_scaled_are_refused() -> None:
    """SciPy writes an array of floats as it is: one made of 16-bit samples reaches 32767."""
    loud, unscaled = TONE * 8, TONE * 32767
    sent = [
        frame(riff(chunk(b"fmt ", form(3, 32)), chunk(b"data", one.astype("<f4").tobytes())))
        for one in (loud, unscaled)
    ]

    run = run_stage(Pcm16, sent)

    assert len(run.out) == 1
    assert run.dead == {"bad-wav": 1}
    assert "full scale is -1 to 1" in str(run.errors[0])


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.binary(min_size=72, max_size=72))
def test_pcm_agrees_with_the_standard_library(width: int, channels: int, samples: bytes) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, width, RATE, 0, "NONE", ""))
        out.writeframes(samples)
    with wave.open(io.BytesIO(file.getvalue())) as back:
        data = back.readframes(1000)
    values = [
        data[at] - 128 if width == 1 else int.from_bytes(data[at : at + width], "little", signed=True)
        for at in range(0, len(data), width)
    ]
    expected = np.array(values, np.float64).reshape(-1, channels)[:, channels - 1] / 2 ** (8 * width - 1)

    (out_frame,) = run_stage(Pcm16, [frame(file.getvalue(), content_type="audio/wav")], channel=channels - 1).out

    np.testing.assert_allclose(out_frame.array, expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<f4", "<f8"])
def test_what_scipy_writes_is_read(dtype: str) -> None:
    wavfile = pytest.importorskip("scipy.io.wavfile")
    file = io.BytesIO()
    scale: Any = {"u1": (127, 128), "<i2": (32767, 0), "<i4": (2**31 - 1, 0)}.get(dtype, (1, 0))
    wavfile.write(file, RATE, (TONE * scale[0] + scale[1]).astype(dtype))

    (out,) = run_stage(Pcm16, [frame(file.getvalue(), content_type="audio/wav")]).out

    np.testing.assert_allclose(out.array, TONE, atol=0.02 if dtype == "u1" else 1 / 16384)


@given(st.data())
def test_any_damage_is_a_frame_error(data: st.DataObject) -> None:
    payload = bytearray(READ[data.draw(st.sampled_from(sorted(READ)))][: data.draw(st.integers(0, 400))])
    for _ in range(data.draw(st.integers(0, 4)) if payload else 0):
        payload[data.draw(st.integers(0, min(len(payload), 90) - 1))] = data.draw(st.integers(0, 255))

    run = run_stage(Pcm16, [frame(bytes(payload), content_type="audio/wav")])

    assert len(run.out) + len(run.errors) == 1
    assert all(isinstance(error, FrameError) for error in run.errors)
    assert all(len(out.array) for out in run.out)
