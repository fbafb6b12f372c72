from pathlib import Path

import pytest

from nilatent.config import PRESETS, read_config, sized, write_config
from nilatent.errors import SettingError


def test_later_wins_over_earlier(tmp_path: Path):
    file = tmp_path / "study.toml"
    file.write_text("seed = 3\n[recipe]\nspacing_mm = 2\n[study]\ngroup = 'dx'\n")
    assert read_config(file).recipe.spacing_mm == 2.0
    assert read_config(file, preset="cpu", overrides={"recipe.spacing_mm": 6.0}).recipe.spacing_mm == 6.0
    assert read_config(file, overrides={"study.group": "arm"}).study.group == "arm"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_complete_and_its_own(preset: str):
    assert read_config(preset=preset).recipe.spacing_mm == PRESETS[preset]["recipe"]["spacing_mm"]


def test_presets_grow_with_the_machine():
    found = [read_config(preset=name) for name in ("cpu-small", "cpu", "gpu", "gpu-large")]
    assert list(PRESETS) == ["cpu-small", "cpu", "gpu", "gpu-large"]
    spacings = [one.recipe.spacing_mm for one in found]
    assert spacings == sorted(spacings, reverse=True)
    epochs = [one.training.n_epochs for one in found]
    assert epochs == sorted(epochs)
    assert [one.training.checkpointing for one in found] == [False, False, False, True]
    several = read_config(preset="gpu-large", overrides={"training.devices": 4, "training.num_nodes": 2})
    assert (several.training.n_processes, several.training.piece) == (8, 2)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_gives_way_to_what_is_asked(preset: str):
    asked = {"training.batch_size": 5, "training.micro_batch": 0, "model.channels": [4, 8]}
    config = read_config(preset=preset, overrides=asked)
    assert (config.training.batch_size, config.training.piece, config.model.channels) == (5, 5, (4, 8))


def test_written_settings_read_back_equal(tmp_path: Path):
    config = read_config(overrides={"seed": 5, "model.n_latent": 7, "study.columns.sex": "gender"})
    write_config(config, tmp_path / "study.toml")
    assert read_config(tmp_path / "study.toml") == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.n_latnet": 3}, "Did you mean 'n_latent'"),
        ({"modle.n_latent": 3}, "Did you mean 'model'"),
        ({"model.n_latent": "many"}, "'model.n_latent' is of type int, got 'many'"),
        ({"model.n_latent": True}, "is of type int"),
        ({"model": 3}, "is a table"),
        ({"recipe.spacing_mm": "2"}, "'recipe.spacing_mm' is of type float"),
        ({"lrcp.alpha": 2.0}, "lrcp.alpha is 2.0"),
        ({"lrcp.n_folds": 1}, "lrcp.n_folds is 1"),
        ({"lrcp.n_permutations": 0}, "lrcp.n_permutations is 0"),
        ({"training.device": "tpu"}, "training.device is 'tpu'"),
        ({"training.devices": 0}, "training.devices is 0"),
        ({"training.freeze": ["anchor"]}, "training.freeze is anchor"),
    ],
)
def test_wrong_settings_are_refused_in_words(overrides: dict[str, object], words: str):
    with pytest.raises(SettingError, match=words):
        read_config(overrides=overrides)


def test_unknown_preset_absent_file_and_broken_toml_are_refused(tmp_path: Path):
    with pytest.raises(SettingError, match="cpu-small, cpu, gpu, gpu-large"):
        read_config(preset="tpu")
    with pytest.raises(SettingError, match="no configuration file"):
        read_config(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("seed = = 1")
    with pytest.raises(SettingError, match="not valid TOML"):
        read_config(tmp_path / "broken.toml")


def test_one_seed_reaches_every_stage_unless_a_stage_has_its_own():
    config = read_config(overrides={"seed": 11, "split.seed": 4})
    assert (config.training.seed, config.lrcp.seed, config.split.seed) == (11, 11, 4)


@pytest.mark.parametrize(("n_train", "n_latent"), [(6, 2), (31, 7), (104, 26), (5000, 32)])
def test_number_of_latents_follows_the_training_scans(n_train: int, n_latent: int):
    assert sized(read_config(), n_train=n_train).n_latent == n_latent


def test_a_number_of_latents_that_was_set_is_kept():
    assert sized(read_config(overrides={"model.n_latent": 9}), n_train=1000).n_latent == 9


def test_flags_win_over_the_settings_that_a_run_left(tmp_path: Path):
    left = tmp_path / "study.toml"
    write_config(read_config(overrides={"seed": 1, "study.group": "arm", "study.covariates": ["age"]}), left)
    again = read_config(left, overrides={"seed": 7, "study.group": "dx", "study.covariates": []})
    assert [again.seed, again.split.seed, again.training.seed, again.lrcp.seed] == [7] * 4
    assert (again.lrcp.group, again.lrcp.covariates) == ("dx", ())


def test_a_stage_that_has_its_own_seed_keeps_it_when_written(tmp_path: Path):
    write_config(read_config(overrides={"split.seed": 4}), tmp_path / "study.toml")
    again = read_config(tmp_path / "study.toml", overrides={"seed": 7})
    assert (again.split.seed, again.training.seed) == (4, 7)


def test_a_number_of_latents_is_never_passed_over(tmp_path: Path):
    write_config(read_config(), tmp_path / "study.toml")
    assert read_config(tmp_path / "study.toml") == read_config()
    with pytest.raises(SettingError, match="n_latent_auto = false"):
        read_config(tmp_path / "study.toml", overrides={"model.n_latent": 8})


def test_files_are_relative_to_the_settings_that_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "settings" / "small.toml"
    file.parent.mkdir()
    file.write_text("[atlas]\nspec = 'mine.nii'\n[study]\nexclude = '../out.txt'\n")
    config = read_config(file)
    file.write_text(file.read_text() + "[training]\nstart_from = '../model'\n")
    assert read_config(file).training.start_from == str((tmp_path / "model").resolve())
    assert (config.atlas.spec, config.atlas.table) == (str((file.parent / "mine.nii").resolve()), "")
    write_config(config, tmp_path / "elsewhere" / "study.toml")
    monkeypatch.chdir(tmp_path)
    assert read_config(Path("elsewhere/study.toml")) == config
    file.write_text("[atlas]\nspec = 'AAL2'\n")
    assert read_config(file).atlas.spec == "AAL2"


def test_a_spatial_model_takes_its_own_training_unless_told_otherwise(tmp_path):
    own = read_config(preset="cpu", overrides={"model.name": "spatial_vae", "training.batch_size": 3}).training
    assert (own.patience, own.n_epochs, own.batch_size) == (25, 80, 3)
    assert read_config(preset="cpu", overrides={"model.name": "vae"}).training.patience == 15


def test_folds_are_those_of_the_split(tmp_path: Path) -> None:
    config = read_config(overrides={"folds": 4})
    assert (config.folds, config.split.n_folds) == (4, 4)
    write_config(config, tmp_path / "study.toml")
    assert read_config(tmp_path / "study.toml") == config
    assert read_config(tmp_path / "study.toml", overrides={"folds": 3}).split.n_folds == 3
    write_config(read_config(), tmp_path / "plain.toml")
    assert read_config(tmp_path / "plain.toml", overrides={"folds": 3}).split.n_folds == 3
    for wrong in ({"folds": 1}, {"folds": 4, "split.n_folds": 5}):
        with pytest.raises(SettingError, match="at least 2, and the same as"):
            read_config(overrides=wrong)


def test_modalities_and_tables_are_the_studys(tmp_path: Path) -> None:
    asked = {"study.modalities.flair": "FLAIR", "study.tables.scores": ["BDI", "MADRS"], "seed": 3}
    config = read_config(overrides=asked | {"multimodal.weights.scores": 2.0, "fusion.barred.scores": "group"})
    assert config.study.modalities == {"flair": "FLAIR"}
    assert config.fusion.tables == {"scores": ("BDI", "MADRS")} == config.study.tables
    assert (config.multimodal.seed, config.multimodal.weights) == (3, {"scores": 2.0})
    write_config(config, tmp_path / "study.toml")
    assert read_config(tmp_path / "study.toml") == config
    again = read_config(tmp_path / "study.toml", overrides={"study.tables.scores": ["BDI"], "seed": 4})
    assert (again.fusion.tables, again.multimodal.seed) == ({"scores": ("BDI",)}, 4)
    with pytest.raises(SettingError, match=r"'fusion\.tables' is set in"):
        read_config(overrides={"fusion.tables.scores": ["BDI"]})
    with pytest.raises(SettingError, match=r"multimodal\.dropout is 1"):
        read_config(overrides={"multimodal.dropout": 1.0})
