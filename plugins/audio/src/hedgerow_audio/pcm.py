"""The `pcm16` stage: converts sound, raw 16-bit samples or WAV, to float32 mono."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hedgerow import (
    ArraySpec,
    Frame,
    FrameBatch,
    FrameError,
    FrameSpec,
    Irregular,
    Outcome,
    Stage,
    StageConfig,
    StageMismatch,
)
from hedgerow.frame import Buffer
from hedgerow.wire.sniff import payload_kind
from hedgerow.wire.wav import RIFFS, parse_wav
from hedgerow_audio.samples import MAX_RATE, MIN_RATE, Samples, whole

_MAX_CHANNELS: Final = 64
_SCALE: Final = np.float32(1 / 32768)
_SHORT: Final = 8192
_RAW: Final = frozenset({"", "application/octet-stream", "audio/l16", "audio/pcm", "audio/x-pcm"})
_SOUND: Final = "audio/*"
_WAV: Final = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
_FILES: Final = frozenset(
    {*RIFFS, b"RIFX", b"OggS", b"fLaC", b"FORM", b"caff", b".snd", b"ID3\x03", b"ID3\x04", b"#!AM", b"\x1aE\xdf\xa3"}
    | {b"\x1f\x8b\x08\x00", b"\x89PNG", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\x93NUM"}
)
"""How files begin; two raw samples that look the same would be a strange coincidence."""
_HEAD: Final = 32
_TEXT: Final = bytes(range(0x20, 0x7F)) + b"\r\n\t"
_LOUDEST: Final = 16.0
"""Samples of files of floats may exceed full scale, but not so far: these are whole numbers that were not scaled."""


class Pcm16Config(StageConfig):
    """Format of raw samples; a WAV file has it in its header."""

    rate: int = Field(
        16_000, ge=MIN_RATE, le=MAX_RATE, description="Samples a second, if the frame does not state it (meta `rate`)."
    )
    channels: int = Field(
        1, ge=1, le=_MAX_CHANNELS, description="Interleaved channels, if the frame does not state it (meta `channels`)."
    )
    channel: Literal["mix"] | int = Field(
        "mix", description="`mix` for the mean of all channels, or a channel's number, from 0."
    )
    byte_order: Literal["little", "big"] = Field(
        "little",
        description="Byte order of raw samples. Most senders use little-endian, even for audio/L16, where RFC 2586 requires "
        "big-endian.",
    )

    @model_validator(mode="after")
    def _channel_exists(self) -> Pcm16Config:
        if self.channel != "mix" and self.channel < 0:
            raise ValueError(f"channel {self.channel} is negative; channels count from 0")
        return self


class Pcm16(Stage[Pcm16Config]):
    """Read raw 16-bit PCM, or WAV of any depth, into mono samples of -1..1; meta gets `rate`."""

    concurrent = True

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a payload of sound; give mono samples. Raises: StageMismatch: the payload is something else."""
        content_type = incoming.content_type
        if content_type is not None and content_type not in _RAW | _WAV | {_SOUND}:
            remedy = "Send WAV as audio/wav, or raw 16-bit samples as audio/l16 or audio/pcm."
            raise StageMismatch("payloads of sound", content_type, remedy=remedy)
        rate = incoming.meta.get("rate")
        if rate is None and incoming.unstated and content_type not in _WAV and "rate" in self.config.model_fields_set:
            rate = self.config.rate
        return replace(incoming, content_type=_SOUND).with_array(ArraySpec("float32", (None,)), rate=rate)

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Convert raw samples of one length at once; other rows are left to `process`.

        Raises: Irregular: the first row is not such a row.
        """
        config, payloads = self.config, batch.payloads
        size = len(payloads[0])
        if config.channels != 1 or config.channel not in ("mix", 0) or batch.meta or batch.meta_columns:
            raise Irregular
        if not 0 < size <= _SHORT or size % 2 or batch.content_type not in _RAW:
            raise Irregular
        others = _unlike_samples(payloads, size)
        if not others:
            data = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        else:  # silence stands for them
            silence = bytes(size)
            data = b"".join([silence if row in others else payload for row, payload in enumerate(payloads)])
            for row in others:
                batch.defer(row)
        sound = _scaled(np.frombuffer(data, self._dtype)).reshape(len(payloads), -1)
        return batch.with_array(sound).with_meta(rate=config.rate)

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Convert a list of plain frames at once, at less than half the cost per frame; others one by one."""
        if self.config.channels != 1 or not all(map(_is_plain, frames)):
            return super().process_many(frames)
        payloads = [frame.payload for frame in frames]
        sound = self._mono(_scaled(np.frombuffer(b"".join(payloads), self._dtype)), 1)
        outcomes, end, rate = [], 0, self.config.rate
        for frame, payload in zip(frames, payloads, strict=True):
            start, end = end, end + len(payload) // 2
            outcomes.append(frame.with_array(sound[start:end], rate=rate))
        return outcomes

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: the payload is empty, not sound, or has an incomplete sample."""
        payload = frame.payload
        if not len(payload):
            raise FrameError("The payload is empty", code="empty-payload")
        raw, magic = frame.content_type in _RAW, bytes(payload[:4])
        if frame.content_type in _WAV or (raw and magic in RIFFS):
            wav = parse_wav(payload)
            rate = whole(wav.rate, "rate", MIN_RATE, MAX_RATE)
            channels = whole(wav.channels, "channels", 1, _MAX_CHANNELS)
            samples = wav.samples()
            if wav.floats and np.abs(samples).max() > _LOUDEST:
                raise FrameError(
                    f"The WAV file has floats up to {np.abs(samples).max():.4g}; full scale is -1 to 1",
                    code="bad-wav",
                    remedy="Divide the samples by 32768 before writing them, or write 16-bit integers.",
                )
            return frame.with_array(self._mono(samples, channels), rate=rate)
        if not raw or not _is_samples(payload):
            kind = payload_kind(payload) or (
                ("text", "") if not bytes(payload[:_HEAD]).translate(None, _TEXT) else None
            )
            raise FrameError(
                f"`pcm16` cannot read content type {frame.content_type or 'unknown'!r}"
                f"{f': the payload is {kind[0]}' if kind else f': the payload begins {magic.hex(chr(32))}'}",
                code="unknown-content-type",
                remedy="Send WAV as audio/wav, or raw 16-bit samples as audio/l16 or audio/pcm.",
            )
        rate, channels = self.config.rate, self.config.channels
        if meta := frame.meta:
            rate = whole(meta.get("rate", rate), "rate", MIN_RATE, MAX_RATE)
            channels = whole(meta.get("channels", channels), "channels", 1, _MAX_CHANNELS)
        if len(payload) % (2 * channels):
            raise FrameError(
                f"{len(payload)} bytes are not a whole number of 16-bit samples with {channels} channel(s)",
                code="truncated-samples",
                remedy="Check `channels`, and that the sensor splits its sound between samples.",
            )
        return frame.with_array(self._mono(_scaled(np.frombuffer(payload, self._dtype)), channels), rate=rate)

    @property
    def _dtype(self) -> str:
        return "<i2" if self.config.byte_order == "little" else ">i2"

    def _mono(self, samples: Samples, channels: int) -> Samples:
        if channels == 1 and self.config.channel in ("mix", 0):
            return samples if samples.ndim == 1 else samples[:, 0]
        scaled = samples.reshape(-1, channels)
        if self.config.channel == "mix":
            mixed: Samples = np.mean(scaled, axis=1, dtype=np.float32)
            return mixed
        if self.config.channel >= channels:
            raise FrameError(
                f"Channel {self.config.channel} does not exist: the frame has {channels}",
                code="no-such-channel",
                remedy="Correct `channel` (channels count from 0), or use `mix`.",
            )
        return np.ascontiguousarray(scaled[:, self.config.channel])


def _scaled(samples: NDArray[np.int16]) -> Samples:
    scaled: Samples = samples.astype(np.float32)
    scaled *= _SCALE
    return scaled


def _is_plain(frame: Frame) -> bool:
    """Return whether it is raw, whole samples without meta, and short.

    Frames converted together share one buffer, so each keeps all of them in memory.
    """
    payload = frame.payload
    return (
        0 < len(payload) <= _SHORT
        and not len(payload) % 2
        and not frame.meta
        and frame.content_type in _RAW
        and _is_samples(payload)
    )


def _unlike_samples(payloads: Sequence[Buffer], size: int) -> list[int]:
    """Return which payloads are of another size, or look like a file or text."""
    heads = [bytes(payload[:4]) for payload in payloads]
    rows = [row for row, head in enumerate(heads) if head.isascii() or head in _FILES]
    others = [row for row in rows if not _is_samples(payloads[row])]
    if any(len(payload) != size for payload in payloads):
        others += [row for row, payload in enumerate(payloads) if len(payload) != size]
    return others


def _is_samples(payload: Buffer) -> bool:
    """Return whether raw samples are not recognised as a file or text."""
    magic = bytes(payload[:4])
    if magic in _FILES:
        return False
    if not magic.isascii():  # most sound ends here
        return True
    head = bytes(payload[:_HEAD])
    is_text = len(head) >= _HEAD // 2 and not head.translate(None, _TEXT)
    return not (is_text or head[4:8] == b"ftyp" or b"WAVEfmt" in head)
