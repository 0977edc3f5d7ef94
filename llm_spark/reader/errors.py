"""What can go wrong in the reader, each said in one line: the value, where it stands, what to do.

The room depends on no other room, so its exceptions are its own; a caller that has exit codes maps ReaderError to its
own kind.
"""


class ReaderError(Exception):
    """Anything the reader refuses or fails at; the message is one line with the remedy."""


class ColumnError(ReaderError, ValueError):
    """A column that is not there, or whose type or nulls the reader cannot turn into tensors."""


class SnapshotError(ReaderError):
    """The files are not what the snapshot says: missing, corrupt, changed, or overlaid by deletion vectors."""


class ReadError(ReaderError):
    """A row group could not be read, or the workers that read it died or stalled."""


class StateError(ReaderError, ValueError):
    """A resume state that does not belong to this snapshot, seed or batching."""
