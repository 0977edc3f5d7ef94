"""Torch inference over Arrow batches, for Spark's mapInArrow: what comes next, what a user will do within some days, and how
well the model foresaw what came.
"""

from llm_spark.scoring.advance import ADVANCE_DDL, advance
from llm_spark.scoring.kernels import RECOMMEND_DDL, TARGET_RANKS_DDL, recommend, target_ranks
from llm_spark.scoring.outcomes import FORETELL_DDL, LABELLED_MOMENTS_DDL, foretell, labelled_moments

__all__ = [
    "ADVANCE_DDL",
    "FORETELL_DDL",
    "LABELLED_MOMENTS_DDL",
    "RECOMMEND_DDL",
    "TARGET_RANKS_DDL",
    "advance",
    "foretell",
    "labelled_moments",
    "recommend",
    "target_ranks",
]
