"""Runs lists with an entry in the crash journal, and suspects of an earlier crash alone."""

from __future__ import annotations

from collections.abc import Sequence

from hedgerow.errors import HedgerowError
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed
from hedgerow.pipeline.chain.progress import this_thread
from hedgerow.pipeline.crash_journal import POISON_AFTER, CrashJournal, LaneRecord, SuspectFrame, frame_key
from hedgerow.pipeline.delivery import Delivery, Settlement


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

    After a crash only one list runs at a time, each suspect in it alone. Frames that caused two crashes are dead-lettered.
    """
    if not journal.has_suspects:
        return _run(built, deliveries, lane, record, [frame_key(each.message) for each in deliveries if each.durable])
    with journal.turn:
        journal.forget_absent()
        settlements: list[Settlement] = []
        timings: list[tuple[str, float, int]] = []
        snapshot = None
        for position, delivery in enumerate(deliveries):
            key = frame_key(delivery.message)
            suspect = journal.suspect(key) if delivery.durable else None
            if suspect is not None and suspect.crashes >= POISON_AFTER:
                settlements.append(built.dead_letter(delivery, PoisonFrame(suspect), suspect.stage))
            else:
                completed = _run(built, [delivery], lane, record, [key] if delivery.durable else [])
                settlements += completed.settlements
                timings += completed.timings
                snapshot = completed.snapshot or snapshot
                if completed.not_run:
                    return Completed(settlements, timings, snapshot, not_run=deliveries[position:])
            if suspect is not None:
                journal.cleared(key)
        return Completed(settlements, timings, snapshot)


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
