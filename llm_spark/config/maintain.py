"""Settings of maintenance."""

from __future__ import annotations

from dataclasses import dataclass

from llm_spark.config.checks import require


@dataclass(frozen=True)
class MaintainConfig:
    """Compaction, and removal of files that nothing needs."""

    target_file_mib: int = 128
    """Small files are joined into files of about this size: few enough to list, small enough for one task."""
    retention_hours: int = 168
    """A version younger than this, or the newest until less than this ago, stays readable, and no younger file is touched. Longer than any stage
    or query runs; a week, as Delta's own. Above 720, Delta's own memory of a log, no table's log forgets anything any more."""
    keep_models: int = 5
    """Of archived models the newest so many keep their artifacts, and the versions of the tables that they were trained on: those go by --force
    alone. The champion, the one before it, the challenger and whichever model a user's newest predictions name keep theirs anyway. Any other
    loses its artifact, keeps its row, and pins no version any more: each training has its own copy of the sequences, and a warehouse that
    kept them all would grow with every night. The account names the versions. Five: a working week of nights; more, to be able to repeat
    older trainings."""

    def __post_init__(self) -> None:
        require(self.target_file_mib > 0, "maintain.target_file_mib", self.target_file_mib, "give a number above 0")
        require(self.keep_models >= 0, "maintain.keep_models", self.keep_models, "give 0 or more")
        require(self.retention_hours >= 0, "maintain.retention_hours", self.retention_hours, "give 0 or more")
