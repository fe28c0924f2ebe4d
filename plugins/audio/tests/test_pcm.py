"""`pcm16` decodes sound or refuses a frame with a reason."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import FrameError
from hedgerow.errors import ConfigError
from hedgerow.testing import frame, run_stage
from hedgerow_audio.pcm import Pcm16, _is_samples


def wav(samples: np.ndarray[Any, Any], rate: int = 44_100, channels: int = 1, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def decoded(payload: bytes, content_type: str = "audio/pcm", meta: dict[str, Any] | None = None, **config: Any) -> Any:
    run = run_stage(Pcm16, [frame(payload, content_type=content_type, meta=meta or {})], **config)
    assert not run.errors, run.errors
    return run.out[0]


def refusal(payload: bytes, content_type: str = "audio/pcm", meta: dict[str, Any] | None = None, **config: Any) -> str:
    run = run_stage(Pcm16, [frame(payload, content_type=content_type, meta=meta or {})], **config)
    assert isinstance(run.errors[0], FrameError)
    return run.errors[0].code


def test_full_scale_becomes_minus_one_to_almost_one() -> None:
    sound = decoded(np.array([-32768, 0, 16384, 32767], "<i2").tobytes())

    assert sound.array.dtype == np.float32
    assert sound.array.tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]
    assert sound.meta["rate"] == 16_000


@given(st.binary(min_size=2, max_size=400).filter(lambda data: len(data) % 2 == 0 and _is_samples(data)))
def test_every_sample_survives_exactly(payload: bytes) -> None:
    back = np.round(decoded(payload).array * 32768).astype("<i2")

    assert back.tobytes() == payload


def test_channels_are_mixed_or_picked() -> None:
    stereo = np.array([[1000, 3000], [-2000, 2000]], "<i2").tobytes()

    assert (decoded(stereo, channels=2).array * 32768).tolist() == [2000, 0]
    assert (decoded(stereo, channels=2, channel=1).array * 32768).tolist() == [3000, 2000]
    assert (decoded(stereo, meta={"channels": "2"}, channel=0).array * 32768).tolist() == [1000, -2000]
    assert refusal(stereo, channels=2, channel=2) == "no-such-channel"


def test_big_endian_samples_are_decoded() -> None:
    assert (decoded(np.array([1, -2], ">i2").tobytes(), byte_order="big").array * 32768).tolist() == [1, -2]


def test_the_frames_rate_overrides_the_configuration() -> None:
    assert decoded(b"\0\0", meta={"rate": "8000"}, rate=48_000).meta["rate"] == 8000
    assert refusal(b"\0\0", meta={"rate": "quick"}) == "bad-rate"
    assert refusal(b"\0\0", meta={"rate": float("inf")}) == "bad-rate"
    assert refusal(b"\0\0", meta={"rate": 3}) == "bad-rate"


@pytest.mark.parametrize("content_type", ["audio/wav", "audio/x-wav", "", "application/octet-stream"])
def test_a_wav_header_gives_rate_and_channels(content_type: str) -> None:
    stereo = np.array([[100, 300], [200, 400]], "<i2")

    sound = decoded(wav(stereo, rate=22_050, channels=2), content_type, rate=8000)

    assert (sound.array * 32768).tolist() == [200, 300]
    assert sound.meta["rate"] == 22_050


def test_a_wav_file_may_be_a_view_of_a_larger_buffer() -> None:
    view = memoryview(b"xx" + wav(np.arange(5, dtype="<i2")) + b"yy")[2:-2]

    assert len(run_stage(Pcm16, [frame(view, content_type="audio/wav")]).out[0].array) == 5


def test_payloads_that_are_no_sound_are_refused() -> None:
    assert refusal(b"") == "empty-payload"
    assert refusal(b"\0\0\0") == "truncated-samples"
    assert refusal(b"\0" * 6, channels=2) == "truncated-samples"
    assert refusal(b"\xff\xd8\xff", "image/jpeg") == "unknown-content-type"
    assert refusal(b"RIFF", "audio/wav") == "bad-wav"
    assert refusal(b"fLaC" + bytes(40)) == "unknown-content-type"
    assert refusal(wav(np.zeros(8, "<i2"))[:-1], "audio/wav") == "truncated-samples"
    assert refusal(wav(np.zeros(8, "<i2"), rate=1), "audio/wav") == "bad-rate"


def test_a_channel_below_0_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="count from 0"):
        run_stage(Pcm16, [], channel=-1)


_PLAIN = st.tuples(
    st.binary(min_size=1, max_size=25).map(lambda half: half * 2), st.sampled_from(["audio/pcm", ""]), st.just({})
)
_ANY = st.tuples(
    st.one_of(st.binary(max_size=50), st.just(wav(np.arange(9, dtype="<i2")))),
    st.sampled_from(["audio/pcm", "", "audio/wav", "text/plain"]),
    st.sampled_from([{}, {"rate": "8000"}, {"rate": 3}, {"channels": 2}]),
)


@given(
    st.one_of(st.lists(_PLAIN, max_size=6), st.lists(st.one_of(_PLAIN, _ANY), max_size=6)),
    st.sampled_from([{}, {"rate": 8000}, {"byte_order": "big"}, {"channels": 2}, {"channel": 1}]),
)
def test_processing_a_list_equals_processing_one_by_one(messages, config) -> None:  # type: ignore[no-untyped-def]
    frames = [frame(payload, content_type=kind, meta=meta) for payload, kind, meta in messages]

    together, alone = (run_stage(Pcm16, frames, together=together, **config) for together in (True, False))

    assert [one.array.tolist() for one in together.out] == [one.array.tolist() for one in alone.out]
    assert [one.meta for one in together.out] == [one.meta for one in alone.out]
    assert [error.code for error in together.errors] == [error.code for error in alone.errors]


def test_only_short_frames_share_a_buffer() -> None:
    """Keeping one second of sound must not keep minutes of other frames in memory."""
    short, long = (run_stage(Pcm16, [frame(bytes(size))] * 2).out for size in (1024, 32_000))

    assert short[0].array.base is short[1].array.base is not None
    assert [one.array.base for one in long] == [None, None]


_HEADER = wav(np.arange(50, dtype="<i2"))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=80).map(lambda tail: b"RIFF" + tail),
        st.tuples(st.integers(0, len(_HEADER) - 1), st.binary(min_size=1, max_size=6)).map(
            lambda flip: _HEADER[: flip[0]] + flip[1] + _HEADER[flip[0] + len(flip[1]) :]
        ),
    ),
    st.sampled_from(["", "audio/wav", "audio/pcm", "audio/l16"]),
)
def test_any_bytes_raise_at_most_a_frame_error(payload: bytes, content_type: str) -> None:
    run = run_stage(Pcm16, [frame(payload, content_type=content_type)])

    assert len(run.out) + len(run.errors) == 1
    assert all(isinstance(error, FrameError) for error in run.errors), run.errors
    assert all(np.isfinite(sound.array).all() for sound in run.out)
