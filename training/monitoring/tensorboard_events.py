"""TensorBoard's event files: a full disk loses nothing of them, a run that goes back to a checkpoint cuts them back.

A file is a sequence of records, each a protocol buffer `Event` framed by its length and checksums. TensorBoard's own
writer is a thread that dies of the first failed write and raises that error at every later call; `EventFile` takes its
place below torch's SummaryWriter, so that DeepSpeed's figures and ours both pass through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter

from training.monitoring.append_only_files import AppendedFile, DiskNotice

_HEADER, _FOOTER = 12, 4  # bytes of a record before and after the event: length and its checksum; the event's


class EventFile(AppendedFile):
    """The event writer below torch's FileWriter, over a file that TensorBoard's own writer has begun.

    Events are framed by a RecordWriter, and go to the disk with the next flush.
    """

    def __init__(self, path: Path, notice: DiskNotice) -> None:
        super().__init__(path, notice)
        self._framer = RecordWriter(self)

    def add_event(self, event: Event) -> None:
        """Take an event from the FileWriter."""
        self._framer.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """Take a framed record from the RecordWriter."""
        self.pending.append(record)

    close = AppendedFile.flush

    def records(self) -> Iterator[bytes]:
        """Yield the framed records of the file, up to its end or the first that is damaged."""
        data, start = self.path.read_bytes(), 0
        for event in read_events(self.path):
            end = start + _HEADER + len(event) + _FOOTER
            yield data[start:end]
            start = end


def take_over(summary_writer: Any, notice: DiskNotice) -> EventFile:
    """Put an EventFile under torch's SummaryWriter, in place of TensorBoard's thread."""
    file_writer = summary_writer.file_writer
    thread = file_writer.event_writer
    if isinstance(thread, EventFile):
        return thread
    thread.close()
    file_writer.event_writer = EventFile(Path(thread._file_name), notice)
    return file_writer.event_writer


def cut_back_events(current: EventFile, keep: Callable[[str, int], bool]) -> None:
    """Take from the event files beside `current`, which is being written, what `keep` says no to, by tag and x.

    Records that a killed process left half written go too. A file that has nothing to lose is not touched, one that has
    nothing left is removed. A TensorBoard that is watching has to be started again to see it.
    """

    def keep_record(record: bytes) -> bool:
        event = Event.FromString(record[_HEADER:-_FOOTER])
        return all(keep(value.tag, event.step) for value in event.summary.value)

    current.keep_only(keep_record)
    for path in current.path.parent.glob("events.out.tfevents.*"):
        # the first record of a file says which version it is
        if path != current.path and EventFile(path, current.notice).keep_only(keep_record) <= 1:
            path.unlink()


def read_events(path: Path) -> Iterator[bytes]:
    """Yield the events of a file as they were serialised, up to its end or the first that is damaged."""
    reader: Any = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except (errors.OutOfRangeError, errors.DataLossError):
            return
        yield reader.record()
