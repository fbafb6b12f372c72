"""The finding `multimodal` on cohorts with known answers, and of tissues and a table of real people.

    python benchmarks/multimodal.py null --n-cohorts 60
    python benchmarks/multimodal.py curve --n-cohorts 10
    python benchmarks/multimodal.py real RUN --columns age sex BDI

``null``: two kinds of images that share nothing; how often something shared is claimed, and the same where they do.
``curve``: what is left unexplained by which kinds are there, beside the best any method could do, which is known here, and how
well the shared latents follow the cause from either image alone. ``real``: grey and white matter and a table of a run folder
made from T1-weighted images.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nilatent.cohort import load_cohort
from nilatent.crossfit import fold_parts
from nilatent.finding import Finding
from nilatent.joint import Model, ask
from nilatent.multimodal import encode_jointly, tissue_volumes
from nilatent.parts import draw_folds
from nilatent.training.multimodal import MultimodalConfig, load_multimodal, train_multimodal
from nilatent.volumes import Grid, Volumes, open_volumes, volumes_in_memory

SHAPE = (15, 17, 13)
VOXEL_NOISE, TABLE_NOISE, PRIVATE = 0.5, 1.0, 2.0
JOINT, RIVAL = "joint model", "best simple regression, chosen inside"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("null", "curve", "real"))
    parser.add_argument("run", type=Path, nargs="?", help="a run folder with `prepared` and `volumes`; for `real`")
    parser.add_argument("--columns", nargs="+", default=["age", "sex"])
    parser.add_argument("--n-cohorts", type=int, default=20)
    parser.add_argument("--n-scans", type=int, default=60)
    parser.add_argument("--n-folds", type=int, default=3)
    parser.add_argument("--n-epochs", type=int, default=0)
    parser.add_argument("--n-latent", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def pattern(rng: np.random.Generator) -> np.ndarray:
    """A smooth volume of unit root mean square."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij")
    waves = sum(
        np.cos(3 * sum(k * one for k, one in zip(rng.uniform(-1, 1, 3), axes, strict=True)) + rng.uniform(0, 6))
        for _ in range(3)
    )
    return waves / np.sqrt(np.mean(np.square(waves)))


def simulated(
    rng: np.random.Generator, n_scans: int, *, shared: float, table: bool
) -> tuple[np.ndarray, dict[str, Volumes | pd.DataFrame], dict[str, float]]:
    """The cause, two images that it moves by `shared` beside two larger private causes, a table; and what each knows of it.

    What a kind knows is the precision of the cause's posterior given it alone, by the true model.
    """
    cause, ids = rng.standard_normal(n_scans), pd.Index([f"sub-{one:04d}" for one in range(n_scans)], name="scan_id")
    scans, mask = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=ids), np.ones(SHAPE, dtype=bool)
    made: dict[str, Volumes | pd.DataFrame] = {}
    knows = {}
    for name in ("gm", "wm"):
        patterns = (
            np.stack([pattern(rng) for _ in range(3)]) * np.array([shared, PRIVATE, PRIVATE])[:, None, None, None]
        )
        causes = np.column_stack([cause, rng.standard_normal((n_scans, 2))])
        array = np.tensordot(causes, patterns, 1) + VOXEL_NOISE * rng.standard_normal((n_scans, *SHAPE))
        made[name] = volumes_in_memory(array, mask=mask, grid=Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])), scans=scans)
        a, private = patterns[0].ravel(), patterns[1:].reshape(2, -1)
        inner = np.eye(2) + private @ private.T / VOXEL_NOISE**2
        left = private @ a / VOXEL_NOISE**2
        knows[name] = float(a @ a / VOXEL_NOISE**2 - left @ np.linalg.solve(inner, left))
    if table:
        made["scores"] = pd.DataFrame({"score": cause + TABLE_NOISE * rng.standard_normal(n_scans)}, index=ids)
        knows["scores"] = 1.0 / TABLE_NOISE**2
    return cause, made, knows


def found(
    modalities: dict[str, Volumes | pd.DataFrame], arguments: argparse.Namespace, seed: int, place: Path
) -> tuple[Finding, list[Model]]:
    """Joint models of all folds, and the finding."""
    images = next(one for one in modalities.values() if isinstance(one, Volumes))
    fold = draw_folds(images.scans, n_folds=arguments.n_folds, stratify=(), seed=seed)
    parts = pd.DataFrame({"subject_id": images.scans["subject_id"], "part": "test", "fold": fold})
    config = MultimodalConfig(n_latent=arguments.n_latent, channels=(4, 8) if images.grid.shape == SHAPE else (8, 16, 32),
                              n_epochs=arguments.n_epochs, patience=8, seed=seed)  # fmt: skip
    models = []
    for number in range(arguments.n_folds):
        own = fold_parts(parts, number, validation_fraction=0.15, seed=seed)
        train_multimodal(modalities, own, config, place / str(number))
        models.append(Model(place / str(number), own))
    return ask(modalities, models, images.scans.index, seed=seed), models


def null(arguments: argparse.Namespace) -> pd.DataFrame:
    rows = []
    for shared in (0.0, 1.0):
        for seed in range(arguments.n_cohorts):
            _, modalities, _ = simulated(
                np.random.default_rng([arguments.seed, seed]), arguments.n_scans, shared=shared, table=False
            )
            with tempfile.TemporaryDirectory() as place:
                told, _ = found(modalities, arguments, seed, Path(place))
            table = told.table[(told.table["sources"] != "itself") & (told.table["way"] == JOINT)]
            one = {
                "shared": shared,
                "claimed": float("and so shared" in told.answer),
                "p under 0.05": float((table["p_mean"] < 0.05).mean()),
                "unexplained": table["unexplained"].mean(),
                "difference": table["difference"].mean(),
                "worse": float("predicts worse" in told.answer),
                "better": float("predicts better" in told.answer),
            }
            rows.append(one)
            print(shared, seed, rows[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(rows).groupby("shared").mean()


def curve(arguments: argparse.Namespace) -> pd.DataFrame:
    rows = []
    for seed in range(arguments.n_cohorts):
        cause, modalities, knows = simulated(
            np.random.default_rng([arguments.seed, seed]), arguments.n_scans, shared=1.0, table=True
        )
        with tempfile.TemporaryDirectory() as place:
            told, models = found(modalities, arguments, seed, Path(place))
            for name in modalities:
                r = [_follows(one, modalities, name, cause) for one in models]
                rows.append(
                    {
                        "what": f"r of shared latents from {name} with the cause",
                        "joint": np.mean(r),
                        "simple": np.nan,
                        "best possible": np.sqrt(knows[name] / (1 + knows[name])),
                    }
                )
        rows += [
            _expected(line, told.table, knows)
            for _, line in told.table.iterrows()
            if line["way"] == JOINT and line["sources"] != "itself"
        ]
        print(seed, told.answer, file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).groupby("what", sort=False)
    return table.mean().assign(sd=table["joint"].std())


def _follows(one: Model, modalities: dict[str, Volumes | pd.DataFrame], name: str, cause: np.ndarray) -> float:
    """Multiple correlation on unseen scans of the cause with latents read from one kind, learned on training scans."""
    latents = encode_jointly(load_multimodal(one.folder), modalities, one.parts, use=[name])["mean"].values
    train, test = ((one.parts["part"] == part).to_numpy() for part in ("train", "test"))
    x = np.column_stack([latents, np.ones(len(latents))])
    fitted = x @ np.linalg.lstsq(x[train], cause[train], rcond=None)[0]
    return float(np.corrcoef(fitted[test], cause[test])[0, 1])


def _expected(line: pd.Series, table: pd.DataFrame, knows: dict[str, float]) -> dict[str, object]:
    same = (table["target"] == line["target"]) & (table["sources"] == line["sources"]) & (table["way"] == RIVAL)
    known = sum(knows[name] for name in str(line["sources"]).split(" + "))
    private = TABLE_NOISE**2 if line["target"].startswith("scores") else 2 * PRIVATE**2 + VOXEL_NOISE**2
    share = 1.0 / (1.0 + private)
    return {
        "what": f"{line['target']} from {line['sources']}",
        "joint": line["unexplained"],
        "simple": float(table.loc[same, "unexplained"].iloc[0]),
        "best possible": 1 - share * known / (1 + known),
    }


def real(arguments: argparse.Namespace) -> pd.DataFrame:
    prepared, gm = load_cohort(arguments.run / "prepared"), open_volumes(arguments.run / "volumes")
    scans = prepared.scans.loc[gm.scans.index]
    with tempfile.TemporaryDirectory() as place:
        wm = tissue_volumes(prepared, "WM", gm.grid, Path(place) / "wm")
        told, _ = found({"gm": gm, "wm": wm, "table": scans[arguments.columns]}, arguments, arguments.seed, Path(place))
    print(told.answer, file=sys.stderr)
    return told.table.set_index(["target", "sources", "scans", "way"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = read_arguments()
    {"null": null, "curve": curve, "real": real}[given.what](given).to_csv(sys.stdout, sep="\t", float_format="%.4f")
