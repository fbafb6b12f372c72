"""Grey matter of held-out people from their white matter and a table: the joint model beside its baselines.

Fraction of variance unexplained of grey matter, over folds by subject; 1 is the mean image of the training scans. Baselines are
fitted on all training scans, and choose their settings inside them; the joint model gives up a quarter of these to choose
its epoch, so they are fitted on its own training scans, too.

    python benchmarks/multimodal.py OUT --columns age sex BDI
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV

from nilatent.cohort import load_cohort
from nilatent.crossfit import fold_parts
from nilatent.multimodal import encode_jointly, predict_modality, tissue_volumes
from nilatent.parts import draw_folds
from nilatent.training.multimodal import MultimodalConfig, TrainedMultimodal, train_multimodal
from nilatent.volumes import Volumes, open_volumes

PENALTIES = np.logspace(-3, 4, 22)
WAYS = {"joint: WM + table": ["wm", "table"], "joint: WM": ["wm"], "joint: table": ["table"]}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, help="a run folder with `prepared` and `volumes`, made from T1-weighted images"
    )
    parser.add_argument("--columns", nargs="+", default=["age", "sex"])
    parser.add_argument("--n-folds", type=int, default=5)
    parser.add_argument("--n-epochs", type=int, default=20)
    parser.add_argument("--n-latent", type=int, default=16)
    parser.add_argument("--experts", default="poe")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def fvu(truth: np.ndarray, drawn: np.ndarray, mean: np.ndarray) -> float:
    return float(np.square(drawn - truth).sum() / np.square(mean - truth).sum())


def coded(table: pd.DataFrame, known: np.ndarray) -> np.ndarray:
    """Columns in SD about the mean of the known scans, missing cells at that mean."""
    numbers = pd.get_dummies(table, drop_first=True, dtype=float)
    mean, sd = numbers[known].mean(), numbers[known].std()
    return ((numbers - mean) / sd).fillna(0.0).to_numpy()


def baselines(
    gm: np.ndarray, wm: np.ndarray, table: pd.DataFrame, known: np.ndarray, held_out: np.ndarray
) -> dict[str, float]:
    """Of the scans held out, by regressions on those that are known."""
    mean = gm[known].mean(axis=0)
    axes = np.linalg.svd(wm[known] - wm[known].mean(axis=0), full_matrices=False)[2][:-1]
    scores = (wm - wm[known].mean(axis=0)) @ axes.T
    scores /= scores[known, 0].std()
    cells = coded(table, known)
    told = {"mean image": 1.0}
    # With a table the weight of its columns against the components is a setting, too; the best of three is shown.
    sets = {"ridge: table": cells, "ridge: WM": scores}
    sets |= {f"ridge: WM + table ({weight:g})": np.hstack([scores, weight * cells]) for weight in (0.03, 0.1, 0.3)}
    for name, x in sets.items():
        fitted = RidgeCV(PENALTIES).fit(x[known], gm[known] - mean)
        told[name] = fvu(gm[held_out], mean + fitted.predict(x[held_out]), mean)
    grid = GridSearchCV(PLSRegression(scale=False), {"n_components": [1, 2, 4, 8]}, cv=5)
    fitted = grid.fit(scores[known], gm[known] - mean)
    return told | {"pls: WM": fvu(gm[held_out], mean + fitted.predict(scores[held_out]), mean)}


def joint(
    model: TrainedMultimodal, modalities: dict[str, Volumes | pd.DataFrame], held_out: list[str], mean: np.ndarray
) -> dict[str, float]:
    gm = modalities["gm"]
    truth = gm.masked(gm.rows(held_out))
    told = {}
    for name, use in WAYS.items():
        drawn = [x for _, x in predict_modality(model, modalities, held_out, target="gm", use=use)]
        told[name] = fvu(truth, np.concatenate(drawn), mean)
    parts = pd.DataFrame({"subject_id": held_out, "part": "test"}, index=pd.Index(held_out, name="scan_id"))
    means = [encode_jointly(model, modalities, parts, use=use)["mean"].values for use in (["gm"], ["wm"])]
    r = [np.corrcoef(one, other)[0, 1] for one, other in zip(means[0].T, means[1].T, strict=True)]
    return told | {"latents from GM and from WM: r, mean of three": float(np.mean(r[:3]))}


def main() -> None:
    arguments = read_arguments()
    prepared, gm = load_cohort(arguments.run / "prepared"), open_volumes(arguments.run / "volumes")
    scans = prepared.scans.loc[gm.scans.index]
    fold = draw_folds(scans, n_folds=arguments.n_folds, stratify=(), seed=arguments.seed)
    parts = pd.DataFrame({"subject_id": scans["subject_id"], "part": "test", "fold": fold})
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        wm = tissue_volumes(prepared, "WM", gm.grid, Path(place) / "wm")
        modalities = {"gm": gm, "wm": wm, "table": scans[arguments.columns]}
        images = {name: modalities[name].masked(modalities[name].rows(list(scans.index))) for name in ("gm", "wm")}
        for number in range(arguments.n_folds):
            known = (fold != number).to_numpy()
            own = fold_parts(parts, number, validation_fraction=0.2, seed=arguments.seed)
            told = {}
            for words, rows_of in (("", known), (" (scans of the joint model)", (own["part"] == "train").to_numpy())):
                found = baselines(images["gm"], images["wm"], modalities["table"], rows_of, ~known)
                told |= {f"{name}{words}": value for name, value in found.items()}
            mean, held_out = images["gm"][known].mean(axis=0), list(scans.index[~known])
            for name, n_epochs in (("linear", 0), ("trained", arguments.n_epochs)):
                config = MultimodalConfig(
                    n_latent=arguments.n_latent,
                    n_epochs=n_epochs,
                    patience=8,
                    experts=arguments.experts,
                    seed=arguments.seed,
                )
                began = time.perf_counter()
                model = train_multimodal(modalities, own, config, Path(place) / f"{name}{number}")
                found = joint(model, modalities, held_out, mean)
                told |= {f"{key} ({name})": value for key, value in found.items()}
                result = model.result
                print(
                    f"fold {number} {name}: {result['summary']} {result['n_shared']} shared, gain {result['sharing_gain']:.3f}; "
                    f"{time.perf_counter() - began:.0f} s; {result['balance']}",
                    file=sys.stderr,
                    flush=True,
                )
            rows += [{"fold": number, "what": key, "value": value} for key, value in told.items()]
    table = pd.DataFrame(rows).pivot(index="what", columns="fold", values="value")
    table.insert(0, "mean", table.mean(axis=1))
    table.to_csv(sys.stdout, sep="\t", float_format="%.4f")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
