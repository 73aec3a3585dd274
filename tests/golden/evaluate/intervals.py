"""What scipy and statsmodels say about rates, discordant pairs, p-values and means of few rows."""

import random

import numpy
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

import compact

SETS = 1000


def wilson(rng):
    for _ in range(SETS):
        rows = rng.choice([1, 2, 5, 20, 77, 200, 1000, 20000])
        hits, level = rng.choice([0, rows, rng.randint(0, rows)]), rng.choice([0.9, 0.95, 0.99])
        low, high = proportion_confint(hits, rows, alpha=1 - level, method="wilson")
        yield [hits, rows, level, compact.number(low), compact.number(high)]


def discordant(rng):
    """Two numbers of discordant rows; exact, mid-p and corrected p-values in full."""
    for _ in range(SETS):
        most = rng.choice([3, 12, 24, 60, 400])
        first, second = rng.randint(0, most), rng.randint(0, most)
        exact = first + second < 25
        test = mcnemar([[10, first], [second, 10]], exact=exact, correction=True)
        coin = stats.binom(first + second, 0.5)
        fewer = min(first, second)
        mid = 1.0 if first == second else 2 * coin.cdf(fewer) - coin.pmf(fewer)
        yield [first, second, float(test.statistic), float(test.pvalue), float(mid)]


def corrected(rng):
    for _ in range(200):
        p_values = [round(10 ** rng.uniform(-5, 0), 6) for _ in range(rng.randint(1, 8))]
        yield [p_values, [compact.number(value) for value in multipletests(p_values, method="holm")[1]]]


def resampled(rng):
    """Values in hundredths; scipy's percentile interval of their mean, and its standard error."""
    for seed in range(20):
        rows = rng.choice([10, 30, 100])  # with fewer, the means are few and an end jumps between them
        draw = rng.choice([lambda: rng.gauss(0, 1), lambda: rng.expovariate(1)])
        whole = [round(100 * draw()) for _ in range(rows)]
        values = numpy.array(whole) / 100
        result = stats.bootstrap(
            (values,), numpy.mean, n_resamples=20000, method="percentile", confidence_level=0.95,
            rng=numpy.random.default_rng(seed),
        )
        interval = result.confidence_interval
        yield [whole, [round(float(value), 6) for value in (interval.low, interval.high, result.standard_error)]]


def smallest(rng):
    """Rows, power, the smallest mean of differences whose standard deviation is 1."""
    for _ in range(50):
        rows, power = rng.choice([10, 50, 200, 1000]), rng.choice([0.6, 0.8, 0.9])
        # The far tail, which statsmodels adds, is nothing at such a power.
        effect = NormalIndPower(ddof=0).solve_power(nobs1=rows, ratio=0, alpha=0.05, power=power)
        yield [rows, power, float(effect)]


def write():
    rng = random.Random(4)
    compact.write("intervals.json", {
        "wilson": list(wilson(rng)),
        "mcnemar": list(discordant(rng)),
        "holm": list(corrected(rng)),
        "bootstrap": list(resampled(rng)),
        "smallest": list(smallest(rng)),
    })
