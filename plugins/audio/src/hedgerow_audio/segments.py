"""Where speech begins and ends, from probabilities that come one at a time. Pure.

The rule is the one Silero VAD publishes (`get_speech_timestamps`, https://github.com/snakers4/silero-vad): two
thresholds with hysteresis, shortest speech, shortest silence, padding. What differs is that a segment is told as soon
as it is certain, not when all sound has been heard.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When speech begins and ends.

    Attributes:
        on: speech begins with a window at least this probable.
        off: speech may end with a window less probable than this.
        min_speech, min_silence: what is shorter does not count, samples.
        pad: samples that a segment is longer on either side; at most half of `min_silence`.
        max_speech: what is longer is cut, samples.
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
    """A stretch of speech.

    Attributes:
        start, end: samples since the stream began or began anew.
        at: Unix seconds of `start`.
        mean, peak: of its windows' probabilities.
        complete: it begins and ends where the speech does.
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

    `total`, `count` take in windows up to the last that was speech; `quiet_*` those since, which count only if speech
    goes on.
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
    """Follows one stream."""

    thresholds: Thresholds
    rate: int = 16_000
    _expected: int = 0
    _open: _Open | None = field(default=None)

    @property
    def speaking(self) -> bool:
        """Whether a segment has begun and not ended."""
        return self._open is not None

    def feed(self, probability: float, position: int, at: float) -> list[Segment]:
        """Take in the next window; give the segments that are certain now.

        Args:
            probability: of speech in this window.
            position: its first sample; where it is not where the window before ended, there is a gap.
            at: Unix seconds of its first sample.
        """
        if self._open is None and probability < self.thresholds.on:  # silence, which most windows are
            self._expected = position + self.thresholds.size
            return []
        ended = [self._cut()] if position != self._expected else []
        self._expected = position + self.thresholds.size
        if self._open is None:
            if probability >= self.thresholds.on:
                self._open = _Open(position, at, resumed=False)
                self._hear(self._open, probability, position)
        else:
            self._hear(self._open, probability, position)
            ended.append(self._end(self._open, probability, position, at))
        return [segment for segment in ended if segment is not None]

    def _hear(self, speech: _Open, probability: float, position: int) -> None:
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

    def _end(self, speech: _Open, probability: float, position: int, at: float) -> Segment | None:
        limits = self.thresholds
        if (
            speech.quiet_from is not None
            and probability < limits.off  # a window between the thresholds ends nothing
            and position - speech.quiet_from >= limits.min_silence
        ):
            self._open = None
            return self._segment(speech, speech.quiet_from, padded=True, complete=not speech.resumed)
        if self._expected - speech.start < limits.max_speech:
            return None
        if speech.quiet_from is not None:
            self._open = None
            # Not padded: the next may begin with the very next window.
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
        """The segment up to `end`, unless it is too short to be speech; the rest of a cut one never is."""
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
