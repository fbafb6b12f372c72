"""Permutation inference of regions by latents against the bare matrix product, a SciPy loop and nilearn.

The bare product is what 2 x permutations x scans x regions x latents operations take at the peak that a product of large
single-precision matrices reaches in the same process with as many threads. The SciPy loop correlates pair by pair with the
residuals of Freedman-Lane; it and nilearn's `permuted_ols` are timed on fewer permutations, and their seconds for all are
extrapolated. With one thread the clock counts processor time, which other work on the machine disturbs least; with more it
counts wall time.

    OMP_NUM_THREADS=1 python benchmarks/inference.py
    python benchmarks/inference.py --quick
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from measured import machine
from nilearn.mass_univariate import permuted_ols
from scipy.stats import pearsonr
from threadpoolctl import threadpool_info, threadpool_limits

from nilatent.analysis import discriminability, sequential, stats

PEAK_SIDES = (1024, 2048)
N_TIMES = 5


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small problem: does it run at all")
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--regions", type=int, default=116)
    parser.add_argument("--latents", type=int, default=128)
    parser.add_argument("--confounds", type=int, default=4)
    parser.add_argument("--permutations", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of one permutation of the SciPy loop")
    parser.add_argument("--of-nilearn", type=int, nargs=2, default=(5, 25), help="numbers of permutations of nilearn")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.scans, arguments.regions, arguments.latents, arguments.permutations = 100, 20, 8, 200
        arguments.pairs, arguments.of_nilearn = 100, (5, 10)
    return arguments


class Bench:
    """One clock for everything that is compared."""

    def __init__(self, threads: int) -> None:
        self._now = time.process_time if threads == 1 else time.perf_counter

    def seconds(self, run: Callable[[], object], n_times: int = 1) -> float:
        """Least seconds of some runs."""
        found = []
        for _ in range(n_times):
            began = self._now()
            run()
            found.append(self._now() - began)
        return min(found)


def peak(bench: Bench) -> float:
    """Operations a second of a product of square single-precision matrices."""
    rates = []
    for side in PEAK_SIDES:
        a = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
        out = np.empty_like(a)
        rates.append(2 * side**3 / bench.seconds(lambda a=a, out=out: np.matmul(a, a, out=out), N_TIMES))
    return max(rates)


def shares(bench: Bench, x: np.ndarray, z: np.ndarray, basis: np.ndarray, orders: np.ndarray) -> dict[str, float]:
    """Seconds of gathering, of the product and of the passes over its result, for all orders, in batches of eight."""
    z, stacked, batch = z.astype(np.float32), np.vstack([x.T, basis[:, 1:].T]).astype(np.float32), 8
    shuffled = np.empty((len(z), batch, z.shape[1]), np.float32)
    products = np.empty((len(stacked), batch, z.shape[1]), np.float32)
    threshold = np.abs(stacked[: x.shape[1]] @ z)[:, None, :]
    some = orders[:batch].T

    def passes() -> None:
        statistic = np.abs(products[: x.shape[1]])
        np.count_nonzero(statistic >= threshold, axis=1)
        statistic.max(axis=(0, 2))

    parts = {
        "gathering": lambda: np.take(z, some, axis=0, out=shuffled, mode="clip"),
        "product": lambda: np.matmul(stacked, shuffled.reshape(len(z), -1), out=products.reshape(len(stacked), -1)),
        "counting": passes,
    }
    return {name: bench.seconds(run, 20) * len(orders) / batch for name, run in parts.items()}


def rows(arguments: argparse.Namespace) -> pd.DataFrame:
    bench, rng = Bench(arguments.threads), np.random.default_rng(0)
    n, total = arguments.scans, arguments.permutations
    x, z, c = (rng.normal(size=(n, k)) for k in (arguments.regions, arguments.latents, arguments.confounds))
    orders = stats.permutations(n, total, seed=0)
    before = peak(bench)
    ours = bench.seconds(lambda: stats.permuted_correlation(x, z, orders, confounds=c), 2)
    maxima = bench.seconds(lambda: sequential.permuted_maxima(x, z, orders, confounds=c))
    share = bench.seconds(lambda: stats.permuted_share(x, z, orders, confounds=c, penalty=discriminability.PENALTY))
    rate = max(before, peak(bench))
    bare = 2 * total * n * arguments.regions * arguments.latents / rate
    basis = stats.confound_basis(c, n)
    left, right = (stats.unit_residuals(table, basis, what="The table") for table in (x, z))
    pairs = [(i % arguments.regions, i % arguments.latents) for i in range(arguments.pairs)]
    shuffled = stats.residualise(right[orders[0]], c)
    one = bench.seconds(lambda: [pearsonr(left[:, r], shuffled[:, j]) for r, j in pairs]) / len(pairs)
    loop = one * arguments.regions * arguments.latents * total
    few, many = arguments.of_nilearn

    def theirs(n_perm: int) -> Callable[[], object]:
        return lambda: permuted_ols(z, x, c, n_perm=n_perm, n_jobs=1, verbose=0, random_state=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apart = bench.seconds(theirs(many)) - bench.seconds(theirs(few))
    nilearn = apart / (many - few) * total
    parts = shares(bench, left, right, basis, orders)
    print(f"{machine(arguments.threads)}; peak {rate / 1e9:.0f} GFLOP/s; {total} permutations, {n} scans")
    print(", ".join(f"{name} {value / bare:.2f}" for name, value in parts.items()), "times the bare product")
    named = {
        "bare product": bare,
        "permuted_correlation": ours,
        "permuted_maxima": maxima,
        "permuted_share": share,
        f"SciPy loop (from {len(pairs)} pairs of one permutation)": loop,
        f"nilearn permuted_ols (from {few} and {many} permutations)": nilearn,
    }
    table = pd.DataFrame({"seconds": named})
    return table.assign(by_bare=table["seconds"] / bare, by_ours=table["seconds"] / ours)


def main() -> None:
    arguments = read_arguments()
    with threadpool_limits(arguments.threads):
        print(rows(arguments).round(2).to_string())
        print({entry["internal_api"]: entry["num_threads"] for entry in threadpool_info()})


if __name__ == "__main__":
    main()
