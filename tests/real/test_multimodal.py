"""Grey matter of held-out people from their white matter and a table, beside its baselines.

NILATENT_REAL_RUNS names a folder with ``depression``, a run on ds002748 from its T1-weighted images.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cross_decomposition import PLSRegression

from nilatent.cohort import load_cohort
from nilatent.multimodal import predict_modality, tissue_volumes
from nilatent.training.multimodal import MultimodalConfig, train_multimodal
from nilatent.volumes import open_volumes

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_grey_matter_from_white_matter_and_a_table(tmp_path):
    if "NILATENT_REAL_RUNS" not in os.environ:
        pytest.skip("NILATENT_REAL_RUNS names no folder")
    run = Path(os.environ["NILATENT_REAL_RUNS"]) / "depression"
    prepared, gm = load_cohort(run / "prepared"), open_volumes(run / "volumes")
    modalities = {"gm": gm, "wm": tissue_volumes(prepared, "WM", gm.grid, tmp_path / "wm")}
    modalities["table"] = prepared.scans[["age", "sex"]]
    parts = pd.read_csv(run / "split.tsv", sep="\t").set_index("scan_id")
    n_train = int((parts["part"] == "train").sum())
    model = train_multimodal(
        modalities, parts, MultimodalConfig(n_latent=min(16, n_train // 2), n_epochs=3), tmp_path / "m"
    )
    fitted, held_out = (list(parts.index[parts["part"] == part]) for part in ("train", "test"))
    x, y = (modalities[name].masked(modalities[name].rows(fitted)) for name in ("wm", "gm"))
    truth, mean = gm.masked(gm.rows(held_out)), y.mean(axis=0)
    told = {}
    for use in (("wm", "table"), ("wm",), ("table",)):
        drawn = np.concatenate([one for _, one in predict_modality(model, modalities, held_out, target="gm", use=use)])
        told[use] = float(np.square(drawn - truth).sum() / np.square(mean - truth).sum())
    new = modalities["wm"].masked(modalities["wm"].rows(held_out))
    pls = PLSRegression(2, scale=False).fit(x, y).predict(new)
    assert told["wm",] < 0.85
    assert told["wm", "table"] < told["wm",] + 0.03
    assert told["wm",] < told["table",] < 1.05
    assert told["wm", "table"] < float(np.square(pls - truth).sum() / np.square(mean - truth).sum()) + 0.02
