"""Settings of the report."""

from __future__ import annotations

from dataclasses import dataclass

from llm_spark.config.checks import require


@dataclass(frozen=True)
class ReportConfig:
    """What the page shows of persons."""

    num_users: int = 5
    """So many users are shown with their predictions and reasons, under the ids that the tables have; the same ones for the same table, drawn
    by a hash of the id. A page is mailed and printed, so it travels further than a table: 0 shows none, and ingest.pseudonymise hides
    whose they are."""

    def __post_init__(self) -> None:
        ok = 0 <= self.num_users <= 100
        require(ok, "report.num_users", self.num_users, "give 0 to 100: a page is read by people")
