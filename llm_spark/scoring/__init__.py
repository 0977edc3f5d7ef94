"""Torch inference over Arrow batches, for Spark's mapInArrow: what comes next, and how well the model foresaw what
came.
"""

from llm_spark.scoring.kernels import RECOMMEND_DDL, TARGET_RANKS_DDL, recommend, target_ranks

__all__ = ["RECOMMEND_DDL", "TARGET_RANKS_DDL", "recommend", "target_ranks"]
