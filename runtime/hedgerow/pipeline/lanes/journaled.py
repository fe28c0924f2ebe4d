"""Runs lists with an entry in the crash journal, and suspects of an earlier crash alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hedgerow.errors import HedgerowError
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed
from hedgerow.pipeline.chain.progress import this_thread
from hedgerow.pipeline.crash_journal import POISON_AFTER, CrashJournal, LaneRecord, SuspectFrame, frame_key
from hedgerow.pipeline.delivery import Delivery


class PoisonFrame(HedgerowError):
    """A frame was in a stage each time the node crashed or hung."""

    code = "node-crashed"

    def __init__(self, suspect: SuspectFrame) -> None:
        super().__init__(
            f"The node ended {suspect.crashes} times while this frame was in "
            f"{f'stage {suspect.stage}' if suspect.stage else 'a lane'}, so it is not run again",
            remedy="Run the frame through the pipeline by hand; the node's log has the stack of a native crash.",
        )


def run_journaled(
    built: BuiltPipeline, deliveries: Sequence[Delivery], lane: int, journal: CrashJournal, record: LaneRecord
) -> Completed:
    """Run a list; the lane's record has it until it is out of the stages.

    After a crash only one list runs at a time, and each suspect in it alone. Frames that caused two crashes are dead-lettered.
    """
    if not journal.has_suspects:
        return _run(built, deliveries, lane, record, [frame_key(each.message) for each in deliveries if each.durable])
    with journal.turn:
        journal.forget_absent(built.name)
        parts: list[Completed] = []
        done = 0
        for group, suspect in _turns(deliveries, journal):
            keys = [frame_key(each.message) for each in group if each.durable]
            if suspect is not None and suspect.crashes >= POISON_AFTER:
                parts.append(Completed([[built.dead_letter(group[0], PoisonFrame(suspect), suspect.stage)]], []))
            else:
                completed = _run(built, group, lane, record, keys)
                parts.append(completed)
                if completed.not_run:
                    done += len(group) - len(completed.not_run)
                    return Completed.all(parts, not_run=deliveries[done:])
            done += len(group)
            if suspect is not None:
                journal.cleared(keys[0])
        return Completed.all(parts)


def _turns(
    deliveries: Sequence[Delivery], journal: CrashJournal
) -> Iterator[tuple[Sequence[Delivery], SuspectFrame | None]]:
    """Yield what runs together: each suspect alone, and those between two suspects."""
    others: list[Delivery] = []
    for delivery in deliveries:
        suspect = journal.suspect(frame_key(delivery.message)) if delivery.durable else None
        if suspect is None:
            others.append(delivery)
            continue
        if others:
            yield others, None
        others = []
        yield [delivery], suspect
    if others:
        yield others, None


def _run(
    built: BuiltPipeline, deliveries: Sequence[Delivery], lane: int, record: LaneRecord, keys: Sequence[bytes]
) -> Completed:
    record.begin(built.name, built.digest, built.step_names, len(deliveries), keys)
    this_thread.progress = record.progress
    try:
        return built.run(deliveries, lane)
    except BaseException:  # not expected; the next list must not seem to hang where this one was left
        record.progress.leave()
        raise
    finally:
        record.end()
