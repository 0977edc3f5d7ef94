"""Encounters of patients with their codes: what will be recorded of this patient next?

Users are patient pseudonyms, a session is an encounter, items are codes of diagnoses, procedures, prescriptions and
laboratory tests, an intent is a clinic. Codes have the shapes of ICD-10, OPS, ATC and LOINC and mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from llm_spark.simulation.profile import Mark, Profile, Record, in_order_of_start, place_within, scrambled

if TYPE_CHECKING:
    from llm_spark.simulation.process import Process

# Clinic, chapter of its diagnoses, group of its drugs.
_CLINICS = (
    ("CARDIO", "I", "C"),
    ("ENDO", "E", "A"),
    ("PULMO", "J", "R"),
    ("ORTHO", "M", "M"),
    ("NEURO", "G", "N"),
    ("GASTRO", "K", "B"),
    ("ONCO", "C", "L"),
    ("URO", "N", "G"),
)
_UNITS = ("mmol/l", "g/l", "U/l", "mg/dl", "10*9/l", "%")
_ZONE = ZoneInfo("Europe/Berlin")
_DIAGNOSIS, _PROCEDURE, _PRESCRIPTION, _LAB = range(4)


@dataclass(frozen=True)
class HealthProfile(Profile):
    """Text separated by pipes; times are ISO 8601, local to the hospital (Europe/Berlin) and without a zone, so that
    days that hold the end of summer time hold an hour that is ambiguous."""

    name: ClassVar[str] = "health"
    formats: ClassVar[tuple[str, ...]] = ("csv",)
    file_stem: ClassVar[str] = "encounters"
    header: ClassVar[tuple[str, ...]] = (
        "encounter",
        "patient",
        "recorded_at",
        "kind",
        "code",
        "result",
        "unit",
        "ward",
    )
    delimiter: ClassVar[str] = "|"
    user_path: ClassVar[tuple[str, ...]] = ("patient",)
    item_path: ClassVar[tuple[str, ...]] = ("code",)
    time_path: ClassVar[tuple[str, ...]] = ("recorded_at",)
    num_event_types: ClassVar[int] = 4
    bad_times: ClassVar[tuple[str, ...]] = ("0000-00-00T00:00:00", "2025-02-30T10:61:00", "unknown")
    has_session_ids: ClassVar[bool] = True

    event_types: list[str] = field(default_factory=lambda: ["diagnosis", "procedure", "prescription", "lab"])
    event_type_shares: list[float] = field(default_factory=lambda: [0.35, 0.15, 0.25, 0.25])
    valued_event_types: list[str] = field(default_factory=lambda: ["lab"])
    missing_value_share: float = 0.15

    value_log_median: float = 2.0
    value_item_spread: float = 1.5
    value_event_spread: float = 0.25
    min_gap_seconds: int = 60
    median_gap_seconds: float = 2400.0
    max_gap_seconds: int = 20 * 3600
    min_session_gap_seconds: int = 2 * 86_400
    hour_weights: list[float] = field(default_factory=lambda: [0.5] * 5 + [1.0] * 2 + [1.9] * 8 + [1.0] * 4 + [0.5] * 5)

    def event_type_law(self, rng: np.random.Generator, num_items: int) -> NDArray[np.float64]:
        """A code is of one kind."""
        kind_V = rng.choice(len(self.event_types), num_items, p=np.asarray(self.event_type_shares))
        return np.eye(len(self.event_types))[kind_V]

    def user_ids(self, num_users: int) -> list[str]:
        return [f"PSN-{scrambled(user, 10**12):010x}" for user in range(num_users)]

    def item_ids(self, process: Process) -> list[str]:
        clinic_V, kind_V = _clinics_and_kinds(process)
        number_V = place_within(clinic_V * len(self.event_types) + kind_V)
        return [
            _code(int(kind), int(clinic), scrambled(int(number), 1000) if number < 1000 else int(number))
            for clinic, kind, number in zip(clinic_V, kind_V, number_V, strict=True)
        ]

    def records(self, process: Process, marks: Sequence[Mark]) -> list[Record]:
        user_ids, codes = [*process.user_ids, process.bot_user_id], process.item_ids
        clinic_V, kind_V = (of_item.tolist() for of_item in _clinics_and_kinds(process))
        encounter_of = in_order_of_start(marks)
        ward_of: dict[int, str] = {}
        records = []
        for mark in marks:
            kind = kind_V[mark.item]
            ward = ward_of.setdefault(mark.session, _CLINICS[clinic_V[mark.item]][0])
            fields = (
                f"ENC-{encounter_of[mark.session]:08d}",
                user_ids[mark.user],
                datetime.fromtimestamp(mark.time, _ZONE).strftime("%Y-%m-%dT%H:%M:%S"),
                self.event_types[kind],
                codes[mark.item],
                mark.value,
                _UNITS[mark.item % len(_UNITS)] if kind == _LAB else None,
                "TEST" if mark.is_machine else ward,
            )
            records.append(dict(zip(self.header, fields, strict=True)))
        return records


def _clinics_and_kinds(process: Process) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return process.own_intent_V % len(_CLINICS), process.event_type_VK.argmax(axis=1)


def _code(kind: int, clinic: int, number: int) -> str:
    _, chapter, drug_group = _CLINICS[clinic]
    if kind == _DIAGNOSIS:
        return f"{chapter}{number // 10:02d}.{number % 10}"
    if kind == _PROCEDURE:
        return f"5-{clinic}{number // 10:02d}.{number % 10}"
    if kind == _PRESCRIPTION:
        return f"{drug_group}{number // 100:02d}A{chr(ord('A') + number // 10 % 10)}{number % 10:02d}"
    return f"{clinic + 1}{number:03d}-{(clinic + 7 * number) % 10}"
