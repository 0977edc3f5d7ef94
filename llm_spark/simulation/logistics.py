"""Shipment scans of a parcel network: where will this customer's shipment be scanned next?

Users are customers, a session is a shipment, items are scan points of facilities, an intent is a corridor whose cycle
is its usual route. Pickups and deliveries are scanned by hand, and those scanners upload when they are docked: such
events may come days late, and twice.
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

# UN/LOCODE: country and place.
_CORRIDORS = (
    ("DEHAM", "DEBRE", "DEHAJ", "DEBER", "DELEJ", "DEDRS"),
    ("NLRTM", "NLEIN", "BEANR", "BELGG", "DEDUI", "DECGN"),
    ("FRPAR", "FRLEH", "FRMRS", "FRLIL", "FRTLS", "FRBOD"),
    ("ESMAD", "ESBCN", "ESVLC", "ESZAZ", "ESBIO", "ESSVQ"),
    ("ITMIL", "ITTRN", "ITGOA", "ITBLQ", "ATVIE", "ATGRZ"),
    ("GBLON", "GBFXT", "GBBHM", "GBMAN", "GBLIV", "GBGLW"),
    ("PLWAW", "PLPOZ", "PLWRO", "CZPRG", "CZBRQ", "PLGDN"),
    ("DKCPH", "DKAAR", "SEGOT", "SESTO", "NOOSL", "SEMMA"),
)
_ZONES = {
    country: ZoneInfo(name)
    for country, name in {
        "AT": "Europe/Vienna",
        "BE": "Europe/Brussels",
        "CZ": "Europe/Prague",
        "DE": "Europe/Berlin",
        "DK": "Europe/Copenhagen",
        "ES": "Europe/Madrid",
        "FR": "Europe/Paris",
        "GB": "Europe/London",
        "IT": "Europe/Rome",
        "NL": "Europe/Amsterdam",
        "NO": "Europe/Oslo",
        "PL": "Europe/Warsaw",
        "SE": "Europe/Stockholm",
    }.items()
}
_TERMINALS_PER_PLACE = 4
_PICKUP, _IN_TRANSIT, _EXCEPTION, _OUT_FOR_DELIVERY, _DELIVERED = range(5)
_BY_HAND = (_PICKUP, _OUT_FOR_DELIVERY, _DELIVERED)
_SCALE_ERROR = 0.004


@dataclass(frozen=True)
class LogisticsProfile(Profile):
    """JSON lines, nested; times are the facility's local ones with their offset from UTC; the weight, where a scale
    stands, is the shipment's."""

    name: ClassVar[str] = "logistics"
    formats: ClassVar[tuple[str, ...]] = ("jsonl",)
    file_stem: ClassVar[str] = "scans"
    header: ClassVar[tuple[str, ...]] = ("scanned_at", "shipment", "facility", "status", "device")
    user_path: ClassVar[tuple[str, ...]] = ("shipment", "customer", "account")
    item_path: ClassVar[tuple[str, ...]] = ("facility", "code")
    time_path: ClassVar[tuple[str, ...]] = ("scanned_at",)
    num_event_types: ClassVar[int] = 5
    bad_times: ClassVar[tuple[str, ...]] = ("1970-00-00T00:00:00+00:00", "2025-02-30T10:61:00+01:00", "clock not set")
    has_session_ids: ClassVar[bool] = True

    event_types: list[str] = field(
        default_factory=lambda: ["pickup", "in_transit", "exception", "out_for_delivery", "delivered"]
    )
    event_type_shares: list[float] = field(default_factory=lambda: [0.0, 0.95, 0.05, 0.0, 0.0])
    valued_event_types: list[str] = field(default_factory=lambda: ["pickup", "in_transit"])
    missing_value_share: float = 0.1

    value_log_median: float = 1.2
    value_event_spread: float = 0.9
    min_gap_seconds: int = 300
    median_gap_seconds: float = 4 * 3600.0
    max_gap_seconds: int = 30 * 3600
    min_session_gap_seconds: int = 3600

    delivered_share: float = 0.95
    """Share of shipments that end delivered; the others end with the exception that kept them."""

    def types_and_values(
        self, rng: np.random.Generator, process: Process, item_N: NDArray[np.int64], session_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A shipment is picked up, moves, goes out and is delivered; it weighs the same all the way, by each scale."""
        type_N, _ = super().types_and_values(rng, process, item_N, session_N)
        place_N = place_within(session_N)
        length_N = np.bincount(session_N)[session_N]
        left_N = length_N - 1 - place_N
        type_N[(left_N == 1) & (length_N > 2)] = _OUT_FOR_DELIVERY
        ends = left_N == 0
        type_N[ends] = np.where(rng.random(ends.sum()) < self.delivered_share, _DELIVERED, _EXCEPTION)
        type_N[place_N == 0] = _PICKUP

        num_sessions = int(session_N[-1]) + 1 if len(session_N) else 0
        weight_S = rng.lognormal(self.value_log_median, self.value_event_spread, num_sessions)
        weight_N = weight_S[session_N] * (1 + rng.normal(0.0, _SCALE_ERROR, len(session_N)))
        return type_N, self.with_missing_values(rng, type_N, np.round(weight_N.clip(min=0.01), 2))

    def may_be_late(self, event_type_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Scans by hand, for their scanners upload when they are docked."""
        return np.isin(event_type_N, _BY_HAND)

    def user_ids(self, num_users: int) -> list[str]:
        return [f"ACC-{scrambled(user, 10**8):08d}" for user in range(num_users)]

    def item_ids(self, process: Process) -> list[str]:
        return [f"{facility}-{scan_point}" for facility, scan_point in _scan_points(process)]

    def records(self, process: Process, marks: Sequence[Mark]) -> list[Record]:
        user_ids, scan_points = [*process.user_ids, process.bot_user_id], _scan_points(process)
        shipment_of = in_order_of_start(marks)
        records = []
        for mark in marks:
            facility, scan_point = scan_points[mark.item]
            by_hand = mark.event_type in _BY_HAND
            device = f"{'HH' if by_hand else 'FX'}-{facility}-{mark.item % 7}"
            records.append(
                {
                    "scanned_at": datetime.fromtimestamp(mark.time, _ZONES[facility[:2]]).isoformat(),
                    "shipment": {
                        "id": f"SHP{shipment_of[mark.session]:010d}",
                        "customer": {"account": user_ids[mark.user]},
                        "weight_kg": mark.value,
                    },
                    "facility": {"code": facility, "scan_point": scan_point},
                    "status": self.event_types[mark.event_type],
                    "device": {
                        "id": "TEST-SCANNER" if mark.is_machine else device,
                        "kind": "handheld" if by_hand else "fixed",
                    },
                }
            )
        return records


def _scan_points(process: Process) -> list[tuple[str, str]]:
    """Facility and scan point of each item, all on the corridor that is its intent."""
    corridor_V = process.own_intent_V % len(_CORRIDORS)
    points = []
    for corridor, number in zip(corridor_V, place_within(corridor_V).tolist(), strict=True):
        places = _CORRIDORS[corridor]
        number, place = divmod(number, len(places))
        number, terminal = divmod(number, _TERMINALS_PER_PLACE)
        points.append((f"{places[place]}{terminal + 1}", f"P{number + 1:02d}"))
    return points
