"""The view `predictions_current`: which of a user's lists is served."""

from __future__ import annotations

from llm_spark.tokens import ABSTAINED, FALLBACK, FROM_MODEL, WITHDRAWN

PREDICTIONS_CURRENT = "predictions_current"
PREDICTIONS_CURRENT_IS = (
    "a view of predictions: each user's list of his newest day, without users of whom that day says that there is none; user_id is null in the "
    "list for whoever comes for the first time"
)


def current_predictions(has_memory: bool) -> str:
    """The query of `predictions_current`. Whoever reads while a night is written sees each user's old list or the new one, whole.

    What is kept of a user (user_memory) says by which model and up to which day his lists are served: later ones, and those of another model,
    are of a night that was killed or is being written, or of a day of the past that was asked for since. The fallback's list may be later, for
    who has no news gets it each night. Who has no memory has the newest list there is.
    """
    known = of_now = beside = ""
    if has_memory:
        memory = "SELECT user_id, as_of_date AS known_until, model_id AS known_model FROM user_memory"
        known, beside = f"LEFT JOIN ({memory}) USING (user_id)", ", known_until, known_model"
        of_now = f"WHERE known_until IS NULL OR (model_id = known_model AND (as_of_date <= known_until OR source = '{FALLBACK}'))"
    return f"""
SELECT * EXCEPT (newest_date{beside})
FROM (SELECT *, max(as_of_date) OVER (PARTITION BY user_id) AS newest_date FROM predictions {known} {of_now})
WHERE as_of_date = newest_date AND coalesce(source, '{FROM_MODEL}') NOT IN ('{ABSTAINED}', '{WITHDRAWN}')
"""
