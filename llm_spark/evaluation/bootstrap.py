"""Resampled users: weights that any machine finds again, and the intervals made from them.

A replicate of the Poisson bootstrap (Chamandy et al. 2012, Estimating Uncertainty for Massive Data Streams) gives each user a weight of
its own, drawn from Poisson(1), and counts all of that user's positions so often: the user, not the position, is what is sampled. A weight
is a function of the user, the seed and the replicate alone. So every split of the positions into parts gives the same sums, and two
recommenders are resampled alike, which is what makes their difference a paired one.

Shape suffixes: U users, R replicates, W words of 64 bits (four replicates each), G groups of users.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20_260_101
CONFIDENCE = 0.95
NUM_GROUPS = 64
"""Groups of users that the jackknife leaves out one at a time; its standard error is then known to about 9 %."""

_T_975_OF_63 = 1.998340542520741
"""The 97.5 % point of Student's t with NUM_GROUPS - 1 degrees of freedom."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PLACES_OF_16_BITS = (np.arange(2**16) + 0.5) / 2**16

Floats = NDArray[np.float64]


def _poisson_of_16_bits() -> NDArray[np.uint8]:
    """The Poisson(1) quantile at each of 65,536 places of (0, 1): its mean is 1 to five digits."""
    shares = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(12)])
    return np.searchsorted(shares, _PLACES_OF_16_BITS).astype(np.uint8)


_POISSON = _poisson_of_16_bits()


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): every bit of a word depends on all of them."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def poisson_weights(user_hash_U: NDArray[np.int64], num_replicates: int, seed: int = SEED) -> NDArray[np.uint8]:
    """Each user's weight in each replicate [U, R]. The weights of the first replicates do not depend on how many there are."""
    num_words = -(-num_replicates // 4)
    seed_word = _mixed(np.array([seed], np.uint64) + _GOLDEN)
    of_user_U1 = _mixed(user_hash_U.view(np.uint64) ^ seed_word)[:, None]
    place_W = np.arange(1, num_words + 1, dtype=np.uint64) * _GOLDEN
    bits_UW = _mixed(of_user_U1 + place_W).astype("<u8", copy=False)
    return _POISSON[bits_UW.view("<u2")[:, :num_replicates]]


def user_groups(user_hash_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group, from 0 to NUM_GROUPS - 1, that each user is left out with."""
    return (_mixed(user_hash_U.view(np.uint64)) % np.uint64(NUM_GROUPS)).astype(np.int64)


def percentile_interval(replicates_R: Floats) -> tuple[float, float]:
    """The ends of the middle 95 % of the replicates; those in which nobody was drawn (NaN) are left out.

    Percentiles take the users at hand for all the variety there is, so that of few users the interval is a little too narrow: of 10 to 40
    simulated ones it held the truth in 93 of 100 trials, of 80 and more in 94 to 95.
    """
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(replicates_R, [tail, 100 - tail])
    return float(low), float(high)


def jackknife_interval(value: float, without_G: Any) -> tuple[float, float]:
    """95 % interval of a value from what it is without each of the NUM_GROUPS groups of users: value +- t s.

    s^2 = (G - 1) / G sum_g (value_g - mean)^2 is too large rather than too small on average (Efron and Stein 1981).
    """
    left_out_G = np.asarray(without_G, np.float64)
    squares = np.square(left_out_G - left_out_G.mean()).sum()
    spread = _T_975_OF_63 * math.sqrt((NUM_GROUPS - 1) / NUM_GROUPS * squares)
    return float(value - spread), float(value + spread)
