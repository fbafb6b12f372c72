import dataclasses
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nilatent.models import ModelConfig
from nilatent.models.perceptual import high_frequency_energy
from nilatent.training.config import TrainConfig
from nilatent.training.judge import Judgement, judge
from nilatent.training.nuisance import present
from nilatent.training.reference import Reference, copies, partners, probed, reference
from nilatent.training.start import Run, sample, set_up
from nilatent.training.validation import validate
from nilatent.volumes import Volumes, voxel_pca

Cohort = tuple[Volumes, pd.DataFrame]
VAE = ModelConfig(name="vae", n_latent=2, channels=(4, 8, 8))
GRID = ModelConfig(name="spatial_vae", channels=(8, 8), latent_grid=6, latent_channels=2, adversarial=0.0)


def begun(cohort: Cohort, model: ModelConfig, folder: Path) -> tuple[Run, Reference]:
    run = set_up(*cohort, model, TrainConfig(), folder)
    n_components = min(model.n_values, len(run.rows["train"]) - 1)
    pca = voxel_pca(run.volumes, run.rows["train"], n_components, seed=0)
    return run, reference(pca, run.volumes, run.rows, sample(run.rows))


def judged(run: Run, known: Reference, *, whole: bool, scans: pd.DataFrame | None = None) -> Judgement:
    checked = validate(run.module, run.volumes, run.rows["validation"], batch_size=4)
    used = run.volumes.scans.index[np.concatenate([run.rows["train"], run.rows["validation"]])]
    return judge(run, checked, reference=known, nuisances=present(scans, list(used)), whole=whole)


def states(judgement: Judgement) -> dict[str, str]:
    return {verdict.failure: verdict.state for verdict in judgement.verdicts}


def test_an_autoencoder_that_is_pca_has_the_figures_of_pca(curved: Cohort, tmp_path: Path) -> None:
    run, known = begun(curved, ModelConfig(n_latent=3, channels=(4, 8, 8), curve=False), tmp_path)
    found = judged(run, known, whole=False)
    chosen = list(probed(len(known.probed), most=4))
    detail = np.array(known.detail)[chosen].mean()
    swapped = np.array(known.pca_swapped_errors)[chosen].mean() / np.array(known.pca_errors)[chosen].mean()
    assert found.figures["attainable_share"] == pytest.approx(1.0, abs=1e-4)
    assert found.figures["high_frequency"] == pytest.approx(
        np.array(known.pca_detail)[chosen].mean() / detail, rel=1e-3
    )
    assert found.figures["shuffle_ratio"] == pytest.approx(swapped, rel=1e-3)
    assert (found.figures["failures"], found.figures["n_active"]) == ("none", 3)
    assert set(states(judged(run, known, whole=True)).values()) == {"absent", "not assessed"}


def test_the_reference_is_the_naive_one(curved: Cohort, tmp_path: Path) -> None:
    run, known = begun(curved, VAE, tmp_path)
    volumes, rows = run.volumes, run.rows
    pca = voxel_pca(volumes, rows["train"], 2, seed=0)
    x = volumes.masked(rows["validation"])
    other = x[(np.arange(9) + 4) % 9]
    np.testing.assert_allclose(known.pca_swapped_errors, ((x - pca.reconstruct(other)) ** 2).mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(known.pca_errors, ((x - pca.reconstruct(x)) ** 2).mean(axis=1), rtol=1e-4)
    training = volumes.masked(sample(rows))
    np.testing.assert_allclose(known.training_errors, ((training - pca.mean) ** 2).mean(axis=1), rtol=1e-4)
    whole = torch.from_numpy(np.asarray(volumes.data[rows["validation"]], dtype=np.float32))[:, None]
    mask = torch.from_numpy(np.asarray(volumes.mask)).float()
    np.testing.assert_allclose(known.detail, high_frequency_energy(whole * mask, mask), rtol=1e-3)
    assert Reference.from_dict(json.loads(json.dumps(asdict(known)))) == known


def test_a_partner_is_never_the_scan_itself_nor_the_one_beside_it() -> None:
    for n in (4, 7, 30):
        away = (partners(n) - np.arange(n)) % n
        assert set(away) == {n // 2}
        assert sorted(partners(n)) == list(range(n))


def test_copies_are_counted_against_the_scans_themselves(curved: Cohort, rng: np.random.Generator) -> None:
    volumes, _ = curved
    training, x = np.arange(30), volumes.masked(np.arange(30, 40))
    known = volumes.masked(training)
    assert copies(x, x.copy(), volumes, training) == 0.0
    assert copies(x, known[rng.permutation(30)[:10]], volumes, training) == 1.0
    half = np.concatenate([x[:5], known[:5]])
    assert copies(x, half, volumes, training) == 0.5
    # Fainter and brighter copies are copies; so are those of scans drawn close to the mean.
    assert copies(x, known.mean(axis=0) + 0.01 * (half - known.mean(axis=0)), volumes, training) == 0.5
    assert np.isnan(copies(x[:3], x[:3], volumes, training))


def test_a_sound_grid_is_judged_by_its_covered_cells_alone(curved: Cohort, tmp_path: Path) -> None:
    run, known = begun(curved, GRID, tmp_path)
    found = judged(run, known, whole=False)
    n_used = run.module.n_used
    assert n_used < run.model_config.n_values
    assert found.figures["active_share"] == pytest.approx(found.figures["n_active"] / n_used)
    with torch.no_grad():
        run.module.log_var_head.bias.fill_(-30.0)
    clamped = next(one for one in judged(run, known, whole=False).verdicts if one.failure == "divergence")
    assert "100.0 %" in clamped.sentence


def test_the_latents_of_all_scans_in_use_are_asked_for_the_scanner(
    leaking: tuple[Volumes, pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    volumes, parts, scans = leaking
    run, known = begun((volumes, parts), dataclasses.replace(VAE, n_latent=3), tmp_path)
    found = judged(run, known, whole=True, scans=scans)
    assert states(found)["nuisance latents"] == "found"
    sentence = next(one.sentence for one in found.verdicts if one.failure == "nuisance latents")
    assert "48 subjects" in sentence
    assert found.figures["nuisance_r2"] > 0.5
    # Nine validation scans are too few to go by, so an epoch alone says nothing.
    assert np.isnan(judged(run, known, whole=False, scans=scans).figures["nuisance_r2"])


def test_pca_is_told_what_the_model_is_told(curved: Cohort, tmp_path: Path, rng: np.random.Generator) -> None:
    volumes, parts = curved
    age = pd.DataFrame({"age": rng.standard_normal(60)}, index=parts.index)
    field = 0.3 * np.linspace(-1, 1, 17)[:, None]
    array = np.asarray(volumes.data, dtype=np.float32) + age["age"].to_numpy()[:, None, None, None] * field
    aged = Volumes(array.astype(np.float32), volumes.mask, volumes.grid, volumes.scans, "aged")
    model = ModelConfig(n_latent=2, channels=(4, 8, 8), curve=False)
    told = set_up(aged, parts, dataclasses.replace(model, condition=("age",)), TrainConfig(), tmp_path, scans=age)
    blind = set_up(aged, parts, model, TrainConfig(), tmp_path / "blind", scans=age)
    # The yardstick is the start of the model that is told the same; the mean image is the same for both.
    assert told.start_errors.mean() == pytest.approx(told.pca.mse, rel=1e-4)
    assert told.pca.mse < 0.8 * blind.pca.mse
    assert told.mean_image.mse == pytest.approx(blind.mean_image.mse, rel=1e-4)
    found = judge(
        told,
        validate(told.module, aged, told.rows["validation"], batch_size=4, conditions=told.told),
        reference=told.reference,
        nuisances=present(None, []),
    )
    assert found.figures["attainable_share"] == pytest.approx(1.0, abs=1e-3)
    chosen = list(probed(len(told.reference.probed), most=4))
    swapped, own = (
        np.array(getattr(told.reference, name))[chosen].mean() for name in ("pca_swapped_errors", "pca_errors")
    )
    assert found.figures["shuffle_ratio"] == pytest.approx(swapped / own, rel=1e-3)
