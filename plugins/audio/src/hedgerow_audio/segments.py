"""Online segmentation of speech, from one probability per window. Pure.

The algorithm is that of Silero VAD (`get_speech_timestamps`, https://github.com/snakers4/silero-vad): two thresholds
with hysteresis, shortest speech, shortest silence, padding. Unlike there, a segment is returned as soon as it is
certain, not after all sound was processed.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds and durations of the segmentation.

    Attributes:
        on: a segment begins with a window of at least this probability.
        off: it may end with a window of a lower probability than this.
        min_speech, min_silence: shorter ones are ignored, samples.
        pad: extends segments on either side, samples; at most half of `min_silence`.
        max_speech: longer segments are split, samples.
        size: new samples in a window.
    """

    on: float
    off: float
    min_speech: int
    min_silence: int
    pad: int
    max_speech: int
    size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of speech.

    Attributes:
        start, end: samples since the stream began or last started over.
        at: Unix seconds of `start`.
        mean, peak: of its windows' probabilities.
        complete: false if it was split, or ended by a gap.
    """

    start: int
    end: int
    at: float
    mean: float
    peak: float
    complete: bool


@dataclass(slots=True)
class _Open:
    """A segment that has begun.

    `total` and `count` cover windows up to the last with speech; `quiet_*` those since, added if speech resumes.
    """

    start: int
    at: float
    resumed: bool
    total: float = 0.0
    count: int = 0
    peak: float = 0.0
    quiet_from: int | None = None
    quiet_total: float = 0.0
    quiet_count: int = 0


@dataclass(slots=True)
class Segmenter:
    """Finds the segments of one stream."""

    thresholds: Thresholds
    rate: int = 16_000
    _expected: int = 0
    _open: _Open | None = field(default=None)

    @property
    def speaking(self) -> bool:
        """Whether a segment is open."""
        return self._open is not None

    def feed(self, probability: float, position: int, at: float) -> list[Segment]:
        """Add the next window and return the segments that ended.

        Args:
            probability: of speech in this window.
            position: its first sample; there is a gap if it is not the end of the previous window.
            at: Unix seconds of its first sample.
        """
        if self._open is None and probability < self.thresholds.on:  # fast path: most windows are silence
            self._expected = position + self.thresholds.size
            return []
        ended = [self._cut()] if position != self._expected else []
        self._expected = position + self.thresholds.size
        if self._open is None:
            if probability >= self.thresholds.on:
                self._open = _Open(position, at, resumed=False)
                self._add(self._open, probability, position)
        else:
            self._add(self._open, probability, position)
            ended.append(self._close(self._open, probability, position, at))
        return [segment for segment in ended if segment is not None]

    def _add(self, speech: _Open, probability: float, position: int) -> None:
        if probability >= self.thresholds.on and speech.quiet_from is not None:
            speech.total += speech.quiet_total
            speech.count += speech.quiet_count
            speech.quiet_from, speech.quiet_total, speech.quiet_count = None, 0.0, 0
        elif probability < self.thresholds.off and speech.quiet_from is None:
            speech.quiet_from = position
        if speech.quiet_from is not None:
            speech.quiet_total += probability
            speech.quiet_count += 1
        else:
            speech.total += probability
            speech.count += 1
            speech.peak = max(speech.peak, probability)

    def _close(self, speech: _Open, probability: float, position: int, at: float) -> Segment | None:
        limits = self.thresholds
        if (
            speech.quiet_from is not None
            and probability < limits.off  # a window between the thresholds does not end a segment
            and position - speech.quiet_from >= limits.min_silence
        ):
            self._open = None
            return self._segment(speech, speech.quiet_from, padded=True, complete=not speech.resumed)
        if self._expected - speech.start < limits.max_speech:
            return None
        if speech.quiet_from is not None:
            self._open = None
            # Not padded: the next segment may begin with the next window.
            return self._segment(speech, speech.quiet_from, padded=False, complete=False)
        self._open = _Open(self._expected, at + limits.size / self.rate, resumed=True)
        return self._segment(speech, self._expected, padded=False, complete=False)

    def _cut(self) -> Segment | None:
        """End at a gap."""
        speech, self._open = self._open, None
        if speech is None:
            return None
        end = self._expected if speech.quiet_from is None else speech.quiet_from
        return self._segment(speech, end, padded=speech.quiet_from is not None, complete=False)

    def _segment(self, speech: _Open, end: int, *, padded: bool, complete: bool) -> Segment | None:
        """Return the segment up to `end`; None if it is too short. The rest of a split segment is never too short."""
        if not speech.count or (end - speech.start < self.thresholds.min_speech and not speech.resumed):
            return None
        before = 0 if speech.resumed else min(self.thresholds.pad, speech.start)
        after = self.thresholds.pad if padded else 0
        return Segment(
            start=speech.start - before,
            end=end + after,
            at=speech.at - before / self.rate,
            mean=speech.total / speech.count,
            peak=speech.peak,
            complete=complete,
        )
