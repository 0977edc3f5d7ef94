"""Card transactions as a bank exports them: which merchant will this card pay next?

Users are card tokens, items merchants with their category code, an intent is an occasion (groceries, travel, ...). All
names are invented, and no token passes the check that a real card number must pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from llm_spark.simulation.profile import Mark, Profile, Record, place_within, refusal, scrambled

if TYPE_CHECKING:
    from llm_spark.simulation.process import Process


class _Place(NamedTuple):
    city: str
    country: str
    currency: str
    units_per_euro: float
    zone: ZoneInfo


_BERLIN = ZoneInfo("Europe/Berlin")
_GERMAN_CITIES = ("HAMBURG", "BERLIN", "MÜNCHEN", "KÖLN", "LEIPZIG", "BREMEN", "DRESDEN", "KIEL", "ULM", "TRIER")
_HOMES = tuple(_Place(city, "DE", "EUR", 1.0, _BERLIN) for city in _GERMAN_CITIES)
_ABROAD = (
    _Place("PARIS", "FR", "EUR", 1.0, ZoneInfo("Europe/Paris")),
    _Place("LONDON", "GB", "GBP", 0.84, ZoneInfo("Europe/London")),
    _Place("ZÜRICH", "CH", "CHF", 0.95, ZoneInfo("Europe/Zurich")),
    _Place("WARSZAWA", "PL", "PLN", 4.25, ZoneInfo("Europe/Warsaw")),
    _Place("NEW YORK", "US", "USD", 1.08, ZoneInfo("America/New_York")),
    _Place("TOKYO", "JP", "JPY", 162.0, ZoneInfo("Asia/Tokyo")),
)


class _Merchant(NamedTuple):
    mcc: str
    name: str
    place: _Place
    is_online: bool


# An occasion each: category codes (ISO 18245) with invented brands, and whether these sell online, from anywhere.
_OCCASIONS = (
    (("5411", "KORNBLUME MARKT"), ("5411", "NORDFRISCH"), ("5462", 'BÄCKEREI "AM TOR"'), ("5499", "BIOHOF ECK")),
    (("5812", "TRATTORIA SOLE"), ("5814", "CURRY; CO"), ("5814", "FALAFEL FREUND"), ("5813", "BAR ANKER")),
    (("5541", "STROMTANK"), ("5542", "TANKHOF RING"), ("7523", "PARKHAUS MITTE"), ("4111", "STADTBAHN TICKET")),
    (("3000", "AERONORD"), ("4722", "REISEKISTE"), ("7011", "HOTEL LINDENHOF"), ("4112", "FERNZUG")),
    (("5816", "SPIELWOLKE"), ("5815", "TONSTROM MUSIC"), ("4899", "FILMFLUSS"), ("5734", "APPKISTE")),
    (("5651", "MODEHAUS BLAU"), ("5661", "SCHUHWERK"), ("5977", "PARFÜMERIE ROSA"), ("5699", "FADENLAUF")),
    (("5912", "STERN APOTHEKE"), ("8011", "PRAXIS AM PARK"), ("8021", "ZAHNZENTRUM"), ("7997", "FITWERK")),
    (("5200", "HOLZ UND HAMMER"), ("5712", "MÖBELGARTEN"), ("5732", "ELEKTRO VOLT"), ("5261", "GRÜNZEUG")),
)
_SOLD_ONLINE = ("3000", "4722", "5816", "5815", "4899", "5734", "5699")
_AT_THE_COUNTER = ("CONTACTLESS", "CONTACTLESS", "CHIP")
_AUTHORISATION, _DECLINE, _REVERSAL = range(3)
_TEST_AMOUNT = 0.01


@dataclass(frozen=True)
class FinanceProfile(Profile):
    """CSV with semicolons and decimal commas; times are the merchant's local ones with their offset from UTC."""

    name: ClassVar[str] = "finance"
    formats: ClassVar[tuple[str, ...]] = ("csv",)
    file_stem: ClassVar[str] = "card-transactions"
    header: ClassVar[tuple[str, ...]] = (
        "TXN_REF",
        "CARD_TOKEN",
        "LOCAL_TIME",
        "TXN_TYPE",
        "MCC",
        "MERCHANT",
        "COUNTRY",
        "AMOUNT",
        "CURRENCY",
        "BILLING_EUR",
        "ENTRY_MODE",
        "TERMINAL_ID",
    )
    delimiter: ClassVar[str] = ";"
    user_path: ClassVar[tuple[str, ...]] = ("CARD_TOKEN",)
    item_path: ClassVar[tuple[str, ...]] = ("MERCHANT",)
    time_path: ClassVar[tuple[str, ...]] = ("LOCAL_TIME",)
    num_event_types: ClassVar[int] = 3
    bad_times: ClassVar[tuple[str, ...]] = ("00.00.0000 00:00:00 +00:00", "31.02.2025 25:61:00 +01:00", "n/a")

    event_types: list[str] = field(default_factory=lambda: ["AUTHORISATION", "DECLINE", "REVERSAL"])
    event_type_shares: list[float] = field(default_factory=lambda: [0.95, 0.05, 0.0])
    valued_event_types: list[str] = field(default_factory=lambda: ["AUTHORISATION", "DECLINE", "REVERSAL"])

    value_log_median: float = 3.2
    value_item_spread: float = 0.9
    value_event_spread: float = 0.5
    min_gap_seconds: int = 60
    median_gap_seconds: float = 800.0
    max_gap_seconds: int = 90 * 60
    min_session_gap_seconds: int = 18 * 3600
    hour_weights: list[float] = field(
        default_factory=lambda: [0.25] * 5 + [1.0] * 2 + [1.6] * 11 + [1.2] * 3 + [0.6] * 3
    )

    tail_share: float = 0.02
    """Share of amounts that are multiplied by a Pareto factor: the heavy tail that card amounts have."""

    tail_exponent: float = 1.5
    """Exponent of that factor's law; below 2 its variance is infinite."""

    reversal_share: float = 0.4
    """Share of repeated payments to a merchant within an outing that are the reversal of the one before, with its
    amount."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.tail_exponent < math.inf:
            raise refusal("profile.tail_exponent", self.tail_exponent, "must be above 0")

    def types_and_values(
        self, rng: np.random.Generator, process: Process, item_N: NDArray[np.int64], session_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        type_N, value_N = super().types_and_values(rng, process, item_N, session_N)
        in_tail_N = rng.random(len(item_N)) < self.tail_share
        factor_N = np.where(in_tail_N, 1 + rng.pareto(self.tail_exponent, len(item_N)), 1.0)
        value_N = np.round((value_N * factor_N).clip(min=_TEST_AMOUNT), 2)

        repeats_N = np.zeros(len(item_N), bool)
        repeats_N[1:] = (np.diff(item_N) == 0) & (np.diff(session_N) == 0)
        # Of equal merchants in a row only every second may be a reversal: there must be a payment before it.
        is_second_N = place_within(np.cumsum(~repeats_N)) % 2 == 1
        reversal_N = (
            is_second_N & (np.roll(type_N, 1) == _AUTHORISATION) & (rng.random(len(item_N)) < self.reversal_share)
        )
        type_N = np.where(reversal_N, _REVERSAL, type_N)
        value_N = np.where(reversal_N, np.roll(value_N, 1), value_N)
        return type_N, np.where(self.carries_value(type_N), value_N, np.nan)

    def user_ids(self, num_users: int) -> list[str]:
        return [_card_token(user) for user in range(num_users)]

    def item_ids(self, process: Process) -> list[str]:
        return [f"{merchant.mcc} {merchant.name}" for merchant in _merchants(process)]

    def records(self, process: Process, marks: Sequence[Mark]) -> list[Record]:
        user_ids, merchants = [*process.user_ids, process.bot_user_id], _merchants(process)
        in_time_order = np.argsort([mark.time for mark in marks], kind="stable")
        number_N = np.empty(len(marks), np.int64)
        number_N[in_time_order] = np.arange(len(marks))
        records = []
        for number, mark in zip(number_N.tolist(), marks, strict=True):
            mcc, name, place, is_online = merchants[mark.item]
            value = _TEST_AMOUNT if mark.is_machine else mark.value
            decimals = 0 if place.currency == "JPY" else 2
            fields = (
                f"F{process.config.start_date[2:4]}{number:09d}",
                user_ids[mark.user],
                _local_time(mark.time, place.zone),
                self.event_types[mark.event_type],
                mcc,
                name,
                place.country,
                None if value is None else f"{value * place.units_per_euro:.{decimals}f}".replace(".", ","),
                place.currency,
                None if value is None else f"{value:.2f}".replace(".", ","),
                "ECOMMERCE" if is_online else _AT_THE_COUNTER[(mark.user + mark.item) % len(_AT_THE_COUNTER)],
                "TEST0001" if mark.is_machine else f"T{scrambled(mark.item, 10**7):07d}",
            )
            records.append(dict(zip(self.header, fields, strict=True)))
        return records


def _merchants(process: Process) -> list[_Merchant]:
    """Each item's merchant. Those that one taste prefers stand in one town: a card has a home."""
    occasion_V = process.own_intent_V % len(_OCCASIONS)
    merchants = []
    for item, (occasion, number) in enumerate(zip(occasion_V, place_within(occasion_V), strict=True)):
        brands = _OCCASIONS[occasion]
        mcc, brand = brands[number % len(brands)]
        is_online = mcc in _SOLD_ONLINE
        places = (*_HOMES[:3], *_ABROAD) if is_online else _HOMES
        place = places[(scrambled(item, 10**6) if is_online else process.preferred_by_V[item]) % len(places)]
        merchants.append(_Merchant(mcc, f"{brand} {item:04d} {place.city}", place, is_online))
    return merchants


def _card_token(user: int) -> str:
    """Sixteen digits that no card has: the first, 9, is left to national bodies, 999 is no country, and the last digit
    fails the check of ISO/IEC 7812 (Luhn)."""
    digits = f"9999{scrambled(user, 10**11):011d}"
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[::2])
    total = doubled + sum(int(digit) for digit in digits[1::2])
    return f"{digits}{(5 - total) % 10}"


def _local_time(epoch_seconds: int, zone: ZoneInfo) -> str:
    """As 30.03.2025 03:15:00 +02:00."""
    text = datetime.fromtimestamp(epoch_seconds, zone).strftime("%d.%m.%Y %H:%M:%S %z")
    return f"{text[:-2]}:{text[-2:]}"
