import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import blobs

from nilatent.errors import LeakageError, SettingError
from nilatent.models import ModelConfig, Posterior, SpatialVae
from nilatent.training import loop, step
from nilatent.training.checkpoint import TrainedModel
from nilatent.training.config import TrainConfig, learning_rate
from nilatent.training.loop import DivergenceError, train
from nilatent.training.objective import Objective
from nilatent.training.start import set_up
from nilatent.training.validation import baselines, validate
from nilatent.volumes import Grid, Volumes, volumes_in_memory, voxel_pca

Cohort = tuple[Volumes, pd.DataFrame]
SMALL = ModelConfig(n_latent=2, channels=(4, 8, 8))
SMALL_VAE = dataclasses.replace(SMALL, name="vae")
SMALL_SPATIAL = ModelConfig(name="spatial_vae", latent_grid=3, latent_channels=2, channels=(4, 8), adversarial_from=0.0)
SHORT = TrainConfig(n_epochs=3)


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def last(folder: Path) -> bytes:
    """The weights after the last epoch, which every setting moves even when the best epoch is the start."""
    state = load_file(folder / "resume.safetensors")
    return b"".join(state[name].numpy().tobytes() for name in sorted(state) if name.startswith("model.now."))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, dict[str, Path]]:
    """Moving blobs, and a short training of each small model on them: what many tests hold another training against."""
    cohort, root = blobs(np.random.default_rng(0)), tmp_path_factory.mktemp("usual")
    for model in (SMALL, SMALL_VAE):
        train(*cohort, model, SHORT, root / model.name)
    return cohort, {model.name: root / model.name for model in (SMALL, SMALL_VAE)}


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_a_network_follows_a_curve_that_pca_cannot(curved: Cohort, tmp_path: Path, name: str) -> None:
    volumes, parts = curved
    config = TrainConfig(n_epochs=12, learning_rate=4e-3)
    # Without the fitted curve, which would leave the network nothing to learn here.
    model_config = ModelConfig(name=name, n_latent=1, channels=(4, 8, 16), curve=False)
    trained = train(volumes, parts, model_config, config, tmp_path)
    held_out = volumes.rows(list(parts.index[parts["part"] == "test"]))
    pca = voxel_pca(volumes, volumes.rows(list(parts.index[parts["part"] == "train"])), 1, seed=0)
    trivial = baselines(pca, volumes, held_out)
    model = validate(trained.module, volumes, held_out, batch_size=8).fit
    assert trained.best_epoch > 0
    assert model.mse < 0.8 * trivial["pca"].mse < trivial["mean_image"].mse


def test_on_noise_the_model_stays_pca_and_says_so(noise: Cohort, tmp_path: Path) -> None:
    trained = train(*noise, dataclasses.replace(SMALL, n_latent=4), TrainConfig(n_epochs=8, patience=5), tmp_path)
    assert trained.best_epoch == 0
    assert len(trained.history) == 6
    assert trained.result["summary"] == "PCA; the network added nothing."
    assert trained.history["validation_fvu"][0] == pytest.approx(trained.history["pca_fvu"][0], rel=1e-5)


def verdicts(trained: TrainedModel) -> dict[str, str]:
    return {verdict["failure"]: verdict["state"] for verdict in trained.result["verdicts"]}


def test_learning_noise_by_heart_is_seen(curved: Cohort, tmp_path: Path, rng: np.random.Generator) -> None:
    volumes, parts = curved
    noisy = np.asarray(volumes.data, dtype=np.float32) + 0.2 * rng.standard_normal(volumes.data.shape)
    covered = volumes_in_memory(noisy, mask=volumes.mask, grid=volumes.grid, scans=volumes.scans)
    few = pd.concat([parts[parts["part"] == "train"].iloc[:12], parts[parts["part"] == "validation"]])
    plain = ModelConfig(n_latent=8, channels=(8, 16, 32), anchor="none")
    config = TrainConfig(
        n_epochs=45, patience=45, learning_rate=4e-3, weight_decay=0.0, input_noise=0.0, latent_noise=0.0
    )
    trained = train(covered, few, plain, config, tmp_path)
    assert verdicts(trained)["over-fitting"] == "stopped"


def test_a_good_run_is_called_nothing(curved: Cohort, tmp_path: Path) -> None:
    trained = train(*curved, SMALL_VAE, TrainConfig(n_epochs=4), tmp_path)
    assert {"mean local minimum", "over-fitting", "posterior collapse", "prior mismatch"} < set(verdicts(trained))
    assert "found" not in verdicts(trained).values()


def test_history_is_told_in_figures_that_can_be_recomputed(curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    trained = train(volumes, parts, SMALL_VAE, SHORT, tmp_path)
    rows = volumes.rows(list(parts.index[parts["part"] == "validation"]))
    x = volumes.masked(rows)
    mean = volumes.masked(volumes.rows(list(parts.index[parts["part"] == "train"]))).mean(axis=0)
    best = trained.history.set_index("epoch").loc[trained.best_epoch]
    checked = validate(trained.module, volumes, rows, batch_size=3)
    assert best["validation_mse"] == pytest.approx(checked.errors.mean(), rel=1e-5)
    assert best["validation_fvu"] == pytest.approx(checked.errors.mean() / ((x - mean) ** 2).mean(), rel=1e-4)
    assert best["kl"] == pytest.approx(checked.kl.sum(axis=1).mean(), rel=1e-5)
    assert list(trained.history["epoch"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("model", [SMALL, SMALL_VAE], ids=["autoencoder", "vae"])
def test_the_same_seed_gives_the_same_bytes(curved: Cohort, tmp_path: Path, model: ModelConfig) -> None:
    first = train(*curved, model, SHORT, tmp_path / "first")
    second = train(*curved, model, SHORT, tmp_path / "second")
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert last(tmp_path / "first") == last(tmp_path / "second")
    assert first.content_hash == second.content_hash


@pytest.mark.parametrize("step", [0, 3, 7, 14])
def test_a_run_broken_off_at_any_step_goes_on_to_the_same_bytes(
    usual: tuple[Cohort, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    cohort, whole = usual[0], usual[1][SMALL_VAE.name]
    steps, forward = count(), Objective.forward

    def breaks(self: Objective, *inputs: object, **settings: object) -> object:
        if next(steps) == step:
            raise KeyboardInterrupt
        return forward(self, *inputs, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "forward", breaks)
    with pytest.raises(KeyboardInterrupt):
        train(*cohort, SMALL_VAE, SHORT, tmp_path)
    train(*cohort, SMALL_VAE, SHORT, tmp_path)
    assert last(tmp_path) == last(whole)
    assert weights(tmp_path) == weights(whole)


def test_going_on_repeats_no_epoch(curved: Cohort, tmp_path: Path) -> None:
    def stop(row: dict[str, int | float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*curved, SMALL, SHORT, tmp_path, on_epoch=stop)
    epochs: list[float] = []
    train(*curved, SMALL, SHORT, tmp_path, on_epoch=lambda row: epochs.append(row["epoch"]))
    assert epochs == [3]


@pytest.mark.parametrize("file", ["resume.safetensors", "start.safetensors"])
def test_a_torn_file_means_starting_again_not_going_on_wrongly(curved: Cohort, tmp_path: Path, file: str) -> None:
    train(*curved, SMALL, SHORT, tmp_path)
    before = weights(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:1000])
    train(*curved, SMALL, SHORT, tmp_path)
    assert weights(tmp_path) == before


def test_other_settings_do_not_go_on_from_an_older_run(curved: Cohort, tmp_path: Path) -> None:
    train(*curved, SMALL, SHORT, tmp_path / "reused")
    other = dataclasses.replace(SHORT, seed=1)
    train(*curved, SMALL, other, tmp_path / "reused")
    train(*curved, SMALL, other, tmp_path / "fresh")
    assert last(tmp_path / "reused") == last(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_epochs", 2), ("batch_size", 5), ("micro_batch", 3), ("learning_rate", 1e-2), ("warmup_epochs", 1.0),
        ("weight_decay", 2.0), ("input_noise", 1.0), ("latent_noise", 1.0), ("seed", 1), ("precision", "bf16-mixed"),
    ],
)  # fmt: skip
def test_every_training_setting_has_an_effect(
    usual: tuple[Cohort, dict[str, Path]], tmp_path: Path, name: str, value: object
) -> None:
    cohort, trained = usual
    train(*cohort, SMALL, dataclasses.replace(SHORT, **{name: value}), tmp_path)  # type: ignore[arg-type]
    assert last(tmp_path) != last(trained[SMALL.name])


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 50.0},
        {"sigma": 1.0},
        {"channels": (4, 8, 4)},
        {"anchor": "none"},
        {"likelihood": "laplace"},
        {"likelihood": "voxel"},
        {"term": "tc", "beta": 4.0},
        {"term": "free-bits", "free_bits": 50.0},
        {"term": "capacity", "capacity": 50.0},
        {"info_alpha": 0.5},
        {"info_lambda": 1000.0},
    ],
)
def test_every_model_setting_has_an_effect(
    usual: tuple[Cohort, dict[str, Path]], tmp_path: Path, change: dict[str, object]
) -> None:
    cohort, trained = usual
    train(*cohort, dataclasses.replace(SMALL_VAE, **change), SHORT, tmp_path)  # type: ignore[arg-type]
    assert last(tmp_path) != last(trained[SMALL_VAE.name])


def mean_of(posterior: Posterior, generator: torch.Generator) -> torch.Tensor:
    return posterior.mean


@pytest.mark.parametrize(
    "model",
    [dataclasses.replace(SMALL, curve=False), dataclasses.replace(SMALL_VAE, sigma=0.1, curve=False)],
    ids=["autoencoder", "vae"],
)
def test_gradients_of_parts_add_up_to_that_of_the_batch(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ModelConfig
) -> None:
    """Without noise, which is drawn part by part. The last batch has seven scans: parts of three, three and one."""
    monkeypatch.setattr(Posterior, "sample", mean_of)
    parted: list[int] = []
    # The weights all but stand still, so that the optimiser's means are sums of gradients at one place.
    quiet = TrainConfig(n_epochs=1, input_noise=0.0, latent_noise=0.0, learning_rate=1e-9)
    whole = train(*curved, model, quiet, tmp_path / "whole")
    read = step.read_batch
    monkeypatch.setattr(step, "read_batch", lambda volumes, rows: parted.append(len(rows)) or read(volumes, rows))
    parts = train(*curved, model, dataclasses.replace(quiet, micro_batch=3), tmp_path / "parts")
    assert parted[:3] == [3, 3, 2]
    assert parted[-3:] == [3, 3, 1]
    np.testing.assert_allclose(parts.history["train_loss"], whole.history["train_loss"], rtol=1e-5)
    one, other = (load_file(tmp_path / name / "resume.safetensors") for name in ("whole", "parts"))
    means = {name: value for name, value in one.items() if ".exp_avg." in name}
    assert len(means) > 10
    # Some gradients are zero but for rounding, so the largest is the measure.
    size = max(float(value.abs().max()) for value in means.values())
    for name, value in means.items():
        np.testing.assert_allclose(other[name], value, atol=1e-5 * size, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("model", [SMALL, SMALL_SPATIAL], ids=["autoencoder", "spatial_vae"])
def test_checkpointing_changes_nothing_but_memory(curved: Cohort, tmp_path: Path, model: ModelConfig) -> None:
    short = TrainConfig(n_epochs=1)
    train(*curved, model, short, tmp_path / "kept")
    train(*curved, model, dataclasses.replace(short, checkpointing=True), tmp_path / "again")
    assert last(tmp_path / "kept") == last(tmp_path / "again")


def test_a_spatial_model_is_told_to_compute_again(curved: Cohort, tmp_path: Path) -> None:
    for checkpointing in (False, True):
        run = set_up(*curved, SMALL_SPATIAL, TrainConfig(checkpointing=checkpointing), tmp_path)
        assert isinstance(run.module, SpatialVae)
        assert run.module.checkpointing == checkpointing


def test_every_part_of_a_batch_has_noise_of_its_own(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    forward = Objective.forward

    def watched(
        self: Objective, x: torch.Tensor, generator: torch.Generator, *rest: object, **settings: object
    ) -> object:
        seeds.append(generator.initial_seed())
        return forward(self, x, generator, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "forward", watched)
    train(*curved, SMALL, TrainConfig(n_epochs=2, micro_batch=3), tmp_path)
    assert len(seeds) == len(set(seeds)) == 2 * 15


@pytest.mark.parametrize("shape", [(7, 33, 12), (5, 9, 40)])
@pytest.mark.parametrize("model", [SMALL, SMALL_VAE, SMALL_SPATIAL], ids=["autoencoder", "vae", "spatial_vae"])
def test_any_shape_trains_and_comes_back_in_its_own_grid(
    rng: np.random.Generator, tmp_path: Path, model: ModelConfig, shape: tuple[int, int, int]
) -> None:
    ids = [f"sub-{index}" for index in range(10)]
    scans = pd.DataFrame({"subject_id": ids, "dataset": "one"}, index=pd.Index(ids, name="scan_id"))
    parts = pd.DataFrame({"subject_id": ids, "part": ["train"] * 7 + ["validation"] * 3}, index=scans.index)
    mask = np.ones(shape, dtype=bool)
    mask[:, 0] = False
    grid = Grid(shape, np.diag([3.0, 3.0, 3.0, 1.0]))
    volumes = volumes_in_memory(rng.random((10, *shape)), mask=mask, grid=grid, scans=scans)
    trained = train(volumes, parts, model, TrainConfig(n_epochs=1, batch_size=4), tmp_path)
    x = torch.rand(2, 1, *shape)
    drawn = trained.module.decode(trained.module.encode(x).mean)
    assert drawn.shape == x.shape
    assert not drawn[:, :, ~torch.from_numpy(mask)].any()
    assert np.isfinite(trained.history["validation_fvu"]).all()
    assert trained.history["train_loss"].iloc[1:].notna().all()


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ({}, {"kl_warmup_epochs": 2.0}),
        ({"kl_warmup_epochs": 1.0, "n_epochs": 4}, {"kl_cycles": 2}),
    ],
)
def test_the_rise_of_the_kl_has_an_effect(
    curved: Cohort, tmp_path: Path, before: dict[str, object], change: dict[str, object]
) -> None:
    config = dataclasses.replace(SHORT, **before)  # type: ignore[arg-type]
    train(*curved, SMALL_VAE, config, tmp_path / "one")
    train(*curved, SMALL_VAE, dataclasses.replace(config, **change), tmp_path / "two")  # type: ignore[arg-type]
    assert last(tmp_path / "one") != last(tmp_path / "two")


def test_no_epoch_is_chosen_while_the_kl_still_rises(curved: Cohort, tmp_path: Path) -> None:
    plain = dataclasses.replace(SMALL_VAE, anchor="none")
    config = TrainConfig(n_epochs=6, patience=1, learning_rate=1e-2, kl_warmup_epochs=3.0)
    history = train(*curved, plain, config, tmp_path).history
    assert (history["best_epoch"].iloc[:4] == 0).all()
    assert (history["validation_fvu"].iloc[1:4] < history["validation_fvu"].iloc[0]).any()
    assert history["best_epoch"].iloc[4] == 4
    np.testing.assert_allclose(history["beta_eff"].iloc[1:5], [0, 1 / 3, 2 / 3, 1])


def test_of_a_capacity_term_the_target_rises_and_the_weight_does_not(curved: Cohort, tmp_path: Path) -> None:
    model = ModelConfig(name="vae", n_latent=3, channels=(4, 4), beta=2.0, term="capacity", capacity=5.0)
    trained = train(*curved, model, TrainConfig(n_epochs=4, kl_warmup_epochs=4.0), tmp_path)
    np.testing.assert_allclose(trained.history["beta_eff"].iloc[1:], 2.0)


def test_a_run_with_a_queue_goes_on_to_the_same_bytes(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = dataclasses.replace(SMALL_VAE, info_lambda=1000.0)
    train(*curved, info, SHORT, tmp_path / "whole")

    def fall(row: dict[str, int | float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(*curved, info, SHORT, tmp_path / "broken", on_epoch=fall)
    train(*curved, info, SHORT, tmp_path / "broken")
    assert last(tmp_path / "whole") == last(tmp_path / "broken")
    # The queue matters: without it the same epochs end elsewhere.
    monkeypatch.setattr("nilatent.training.objective.QUEUE_LENGTH", 1)
    train(*curved, info, SHORT, tmp_path / "short")
    assert last(tmp_path / "whole") != last(tmp_path / "short")


def test_a_heavy_kl_shrinks_what_the_latents_carry(curved: Cohort, tmp_path: Path) -> None:
    config = TrainConfig(n_epochs=4, learning_rate=1e-2)
    kl = {}
    for beta in (1.0, 1000.0):
        trained = train(*curved, dataclasses.replace(SMALL_VAE, anchor="none", beta=beta), config, tmp_path / str(beta))
        kl[beta] = trained.history["kl"].iloc[-1]
    assert kl[1000.0] < 0.5 * kl[1.0]


def test_effective_beta_of_a_fixed_sigma_is_relative_to_the_error_left(curved: Cohort, tmp_path: Path) -> None:
    trained = train(*curved, dataclasses.replace(SMALL_VAE, beta=2.0, sigma=0.5), SHORT, tmp_path)
    np.testing.assert_allclose(trained.history["beta_eff"], 2.0 * 0.25 / trained.history["validation_mse"], rtol=1e-6)


def test_effective_beta_of_laplace_noise_is_relative_to_its_own_scale(curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    trained = train(volumes, parts, dataclasses.replace(SMALL_VAE, likelihood="laplace", sigma=0.5), SHORT, tmp_path)
    rows = volumes.rows(list(parts.index[parts["part"] == "validation"]))
    error = validate(trained.module, volumes, rows, batch_size=8).absolute_error
    at_best = trained.history["beta_eff"].iloc[trained.best_epoch]
    assert at_best == pytest.approx(0.5 / 2**0.5 / error, rel=1e-5)


def test_the_test_part_is_never_looked_at(curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    changed = np.array(volumes.data)
    changed[parts["part"] == "test"] = 7.0
    other = volumes_in_memory(changed, mask=volumes.mask, grid=volumes.grid, scans=volumes.scans)
    train(volumes, parts, SMALL, SHORT, tmp_path / "one")
    train(other, parts, SMALL, SHORT, tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_divergence_names_the_batch_and_keeps_the_last_good_state(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, forward = count(), Objective.forward

    def explodes(self: Objective, *inputs: object, **settings: object) -> object:
        return forward(self, *inputs, **settings) * (float("nan") if next(steps) == 6 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "forward", explodes)
    with pytest.raises(DivergenceError, match=r"epoch 2, batch 2, with the scans sub-\d+, .*learning_rate below 0.001"):
        train(*curved, SMALL, SHORT, tmp_path)
    kept = load_file(tmp_path / "resume.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert len(pd.read_csv(tmp_path / "history.tsv", sep="\t")) == 2


def test_more_latents_than_scans_are_refused(curved: Cohort, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"n_latent is 39 .* training scans, 39.*Set model.n_latent to 9"):
        train(*curved, dataclasses.replace(SMALL, n_latent=39), SHORT, tmp_path)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_an_empty_part_is_refused(curved: Cohort, tmp_path: Path, part: str) -> None:
    volumes, parts = curved
    with pytest.raises(SettingError, match=f"'{part}'"):
        train(volumes, parts[parts["part"] != part], SMALL, SHORT, tmp_path)


def test_a_subject_on_both_sides_is_refused(curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    parts.loc[parts.index[-20:], "subject_id"] = "sub-000"
    with pytest.raises(LeakageError, match="sub-000"):
        train(volumes, parts, SMALL, SHORT, tmp_path)


@pytest.mark.parametrize(
    "setting",
    [{"n_epochs": -1}, {"kl_cycles": 0}, {"kl_warmup_epochs": -1.0}, {"kl_cycles": 3}, {"patience": 0},
     {"batch_size": 0}, {"learning_rate": 0.0}, {"latent_noise": -1.0},
     {"precision": "16"}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"training.{next(iter(setting))} is"):
        TrainConfig(**setting)  # type: ignore[arg-type]


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(n_epochs=10, warmup_epochs=2.0, learning_rate=1.0)
    rates = [learning_rate(config, epoch) for epoch in (0.0, 1.0, 2.0, 6.0, 10.0)]
    np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-12)


def test_neither_one_scan_nor_many_visits_of_one_person_convince(curved: Cohort, tmp_path: Path) -> None:
    volumes, parts = curved
    learning = ModelConfig(n_latent=1, channels=(4, 8, 16), curve=False), TrainConfig(n_epochs=6, learning_rate=4e-3)
    assert train(volumes, parts, *learning, tmp_path / "all").best_epoch > 0
    judges = parts.index[parts["part"] == "validation"]
    assert train(volumes, parts.drop(index=judges[1:]), *learning, tmp_path / "few").best_epoch == 0
    one = parts["subject_id"].where(~parts.index.isin(judges), "sub-one")
    visits = dataclasses.replace(volumes, scans=volumes.scans.assign(subject_id=one))
    assert train(visits, parts.assign(subject_id=one), *learning, tmp_path / "visits").best_epoch == 0


@pytest.fixture
def script(tmp_path: Path, curved: Cohort) -> list[str]:
    """A training in a process of its own, on the curved cohort written to disk."""
    volumes, parts = curved
    np.savez(tmp_path / "cohort.npz", data=volumes.data, mask=volumes.mask, affine=volumes.grid.affine)
    volumes.scans.to_csv(tmp_path / "scans.tsv", sep="\t")
    parts.to_csv(tmp_path / "parts.tsv", sep="\t")
    code = f"""
        import sys, numpy as np, pandas as pd, torch
        from pathlib import Path
        from nilatent.models import ModelConfig, Posterior, SpatialVae
        from nilatent.training.loop import TrainConfig, train
        from nilatent.volumes import Grid, volumes_in_memory
        torch.set_num_threads(1)
        here = Path({str(tmp_path)!r})
        stored = np.load(here / "cohort.npz")
        read = lambda name: pd.read_csv(here / name, sep="\\t", index_col="scan_id")
        grid = Grid(stored["mask"].shape, stored["affine"])
        volumes = volumes_in_memory(stored["data"], mask=stored["mask"], grid=grid, scans=read("scans.tsv"))
        model = ModelConfig(name="vae", n_latent=2, channels=(4, 8, 8))
        train(volumes, read("parts.tsv"), model, TrainConfig(n_epochs=15, patience=15), here / sys.argv[1])
        """
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bytes(script: list[str], tmp_path: Path) -> None:
    subprocess.run([*script, "whole"], check=True)
    for delay in (0.0, 0.3, 0.7):
        process = subprocess.Popen([*script, "killed"])
        while not (tmp_path / "killed" / "history.tsv").exists():
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*script, "killed"], check=True)
    assert last(tmp_path / "killed") == last(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_the_loop_offers_its_names() -> None:
    assert {"train", "TrainConfig", "ModelConfig", "DivergenceError"} <= set(loop.__all__)


def test_every_epoch_takes_every_training_scan_once_in_a_new_order(
    curved: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, parts = curved
    seen: list[int] = []
    read = step.read_batch

    def watched(volumes: Volumes, rows: np.ndarray) -> object:
        seen.extend(rows)
        return read(volumes, rows)

    monkeypatch.setattr(step, "read_batch", watched)
    train(volumes, parts, SMALL, TrainConfig(n_epochs=2), tmp_path)
    expected = sorted(volumes.rows(list(parts.index[parts["part"] == "train"])))
    first, second = seen[: len(expected)], seen[len(expected) :]
    assert sorted(first) == sorted(second) == expected
    assert first != second


def test_the_encoder_of_an_anchored_model_follows_slowly(curved: Cohort, tmp_path: Path) -> None:
    # One batch, one step: AdamW's first step has the length of the learning rate, and both layers start at zero.
    train(*curved, SMALL, TrainConfig(n_epochs=1, batch_size=64, warmup_epochs=2.0), tmp_path)
    now = load_file(tmp_path / "resume.safetensors")
    assert now["model.now.mirror.last.weight"].abs().max() == pytest.approx(0.5e-3, rel=1e-2)
    assert now["model.now.mean_head.weight"].abs().max() == pytest.approx(0.5e-4, rel=1e-2)
