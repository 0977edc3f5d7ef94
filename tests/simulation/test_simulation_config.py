from dataclasses import FrozenInstanceError, asdict

import pytest
from omegaconf import OmegaConf

from llm_spark.simulation import RetailProfile, SimulationConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("num_users", 0),
        ("num_items", 100),
        ("num_days", 0),
        ("start_date", "yesterday"),
        ("mean_sessions_per_user", 0.5),
        ("mean_session_length", float("nan")),
        ("num_tastes", 0),
        ("num_intents", 0),
        ("items_per_intent", 10),
        ("items_per_intent", 1001),
        ("intent_decay", 0.0),
        ("taste_sharpness", 1.1),
        ("popularity_exponent", -1.0),
        ("chain_share", -0.1),
        ("noise_share", 0.0),
        ("noise_share", 0.9),
        ("chain_steps", []),
        ("chain_steps", [0.5, 0.4]),
        ("num_files_per_day", 0),
        ("gzip_file_rate", 1.5),
        ("unsorted_file_rate", -0.5),
        ("duplicate_rate", 2.0),
        ("late_rate", -1.0),
        ("broken_rate", float("nan")),
        ("missing_user_rate", -0.1),
        ("missing_item_rate", 1.1),
        ("missing_time_rate", 1.1),
        ("bad_time_rate", 1.1),
        ("bot_rate", 1.1),
    ],
)
def test_an_impossible_value_is_refused_in_one_line_that_names_the_field_and_the_value(name, value):
    with pytest.raises(ValueError, match=f"^simulation.{name}=") as refusal:
        SimulationConfig(**{name: value})
    assert repr(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_types", []),
        ("event_type_shares", [0.5, 0.5]),
        ("valued_event_types", ["refund"]),
        ("agents", ["Robot/1"]),
        ("bot_agent", "web/1.8"),
    ],
)
def test_an_impossible_profile_is_refused_in_one_line_that_names_the_field(name, value):
    with pytest.raises(ValueError, match=rf"^simulation\.profile\.{name}=.*$"):
        RetailProfile(**{name: value})


def test_the_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SimulationConfig().num_users = 5


def test_the_config_is_a_structured_config_of_omegaconf_with_its_profile():
    overrides = OmegaConf.from_dotlist(["num_users=12", "profile.item_prefix=part-", "chain_steps=[0.5,0.5]"])
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SimulationConfig), overrides))
    assert asdict(merged) == asdict(
        SimulationConfig(num_users=12, profile=RetailProfile(item_prefix="part-"), chain_steps=[0.5, 0.5])
    )
