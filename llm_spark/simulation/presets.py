"""The trades that can be simulated by name, each with sizes, days and troubles that suit it."""

from __future__ import annotations

from llm_spark.simulation.config import SimulationConfig
from llm_spark.simulation.finance import FinanceProfile
from llm_spark.simulation.health import HealthProfile
from llm_spark.simulation.logistics import LogisticsProfile
from llm_spark.simulation.profile import refusal

PRESETS = {
    "retail": SimulationConfig(),
    # The four weeks hold the beginning of summer time, in America and in Europe.
    "finance": SimulationConfig(
        start_date="2025-03-03",
        num_items=800,
        items_per_intent=130,
        mean_sessions_per_user=12.0,
        mean_session_length=3.0,
        taste_sharpness=0.8,
        profile=FinanceProfile(),
    ),
    # Parcels keep to their corridor's route; scanners that were offline upload late, and some of it twice.
    "logistics": SimulationConfig(
        start_date="2025-09-01",
        num_users=2000,
        num_days=56,
        mean_sessions_per_user=8.0,
        mean_session_length=7.0,
        chain_share=0.5,
        noise_share=0.1,
        late_rate=0.06,
        duplicate_rate=0.04,
        profile=LogisticsProfile(),
    ),
    "health": SimulationConfig(
        start_date="2025-02-03",
        num_days=120,
        mean_sessions_per_user=8.0,
        mean_session_length=5.0,
        profile=HealthProfile(),
    ),
}


def preset(name: str) -> SimulationConfig:
    """The settings of a trade; ValueError naming those there are."""
    if name not in PRESETS:
        raise refusal("profile", name, f"choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
