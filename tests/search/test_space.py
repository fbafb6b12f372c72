from dataclasses import replace

import pytest

from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.search.config import OBJECTIVES, SearchConfig, measures_of
from nilatent.search.space import Choice, Range, given, settings, shown, space
from nilatent.training.config import TrainConfig

VAE = ModelConfig(name="vae", n_latent=8)
TRAINING = TrainConfig(n_epochs=60, kl_warmup_epochs=15.0)
CONFIG = SearchConfig()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (ModelConfig(n_latent=8), {"learning_rate", "n_latent", "width"}),
        (VAE, {"learning_rate", "n_latent", "width", "beta", "kl_warmup", "info_alpha", "info_lambda"}),
        (replace(VAE, term="tc"), {"learning_rate", "n_latent", "width", "beta", "kl_warmup"}),
        (ModelConfig(name="spatial_vae"), {"learning_rate", "latent_channels", "width", "beta", "kl_warmup"}),
    ],
)
def test_what_concerns_a_model_is_searched(model: ModelConfig, names: set[str]) -> None:
    assert set(space(model, TRAINING, CONFIG, n_train=30)) == names


def test_latents_are_bounded_by_the_training_scans() -> None:
    assert space(VAE, TRAINING, CONFIG, n_train=17)["n_latent"] == Choice((4, 8, 16), 8)
    assert space(VAE, TRAINING, CONFIG, n_train=16)["n_latent"] == Choice((4, 8), 8)
    assert space(VAE, TRAINING, SearchConfig(n_latent=(3,)), n_train=16)["n_latent"] == Choice((3, 8), 8)
    with pytest.raises(SettingError, match=r"16 latents are asked for.*at most 15"):
        space(VAE, TRAINING, SearchConfig(n_latent=(16,)), n_train=16)


def test_the_draw_of_what_is_given_is_what_was_given() -> None:
    searched = space(VAE, TRAINING, CONFIG, n_train=30)
    assert settings(given(searched), VAE, TRAINING, CONFIG) == (VAE, TRAINING)
    assert settings({}, VAE, TRAINING, CONFIG) == (VAE, TRAINING)


def test_every_draw_reaches_its_setting() -> None:
    drawn = {"learning_rate": 3e-3, "beta": 2.0, "n_latent": 4, "width": "wide", "kl_warmup": 0.1}
    drawn |= {"info_alpha": 0.2, "info_lambda": 5.0}
    model, training = settings(drawn, VAE, TRAINING, SearchConfig(n_epochs=30))
    assert model == replace(VAE, beta=2.0, n_latent=4, channels=(16, 32, 64, 128), info_alpha=0.2, info_lambda=5.0)
    assert training == replace(TRAINING, learning_rate=3e-3, n_epochs=30, kl_warmup_epochs=3.0)
    assert shown(drawn, model, training)["channels"] == "16-32-64-128"
    assert shown(drawn, model, training)["kl_warmup_epochs"] == 3.0


def test_a_shorter_training_keeps_the_share_of_the_warm_up() -> None:
    assert settings({}, VAE, TRAINING, SearchConfig(n_epochs=20))[1].kl_warmup_epochs == 5.0


def test_widths_stay_multiples_of_a_group_and_differ() -> None:
    thin = replace(VAE, channels=(4, 12))
    assert settings({"width": "narrow"}, thin, TRAINING, CONFIG)[0].channels == (4, 8)
    assert space(replace(VAE, channels=(4, 4)), TRAINING, CONFIG, n_train=30)["width"] == Choice(
        ("given", "wide"), "given"
    )


def test_a_range_of_one_value_is_not_searched() -> None:
    fixed = SearchConfig(beta=(1.0, 1.0), width=("given",), learning_rate=(1e-3, 2e-3))
    searched = space(VAE, TRAINING, fixed, n_train=30)
    assert not {"beta", "width"} & set(searched)
    assert searched["learning_rate"] == Range(1e-3, 2e-3, True, 1e-3)
    assert searched["info_alpha"] == Range(0.0, 0.9, False, 0.0)
    assert searched["info_lambda"] == Range(1.0, 1000.0, True, 1.0)


def test_what_would_be_passed_over_is_refused() -> None:
    with pytest.raises(SettingError, match=r"search.beta is set, and the autoencoder"):
        space(ModelConfig(n_latent=8), TRAINING, SearchConfig(beta=(0.5, 2.0)), n_train=30)
    with pytest.raises(SettingError, match=r"search.kl_warmup is set"):
        space(VAE, replace(TRAINING, kl_cycles=2), SearchConfig(kl_warmup=(0.0, 0.3)), n_train=30)
    with pytest.raises(SettingError, match=r"search.beta is 2 to 3, and the settings as given have 1"):
        space(VAE, TRAINING, SearchConfig(beta=(2.0, 3.0)), n_train=30)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"objective": "loss"}, "objective is 'loss'"),
        ({"n_trials": 0}, "n_trials is 0"),
        ({"n_seeds": 2}, "n_seeds is 2; it must be at least 3"),
        ({"n_epochs": 0}, "n_epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": (1e-2, 1e-4)}, "learning_rate is 0.01 to 0.0001"),
        ({"beta": (0.0, 1.0)}, "beta is 0 to 1"),
        ({"kl_warmup": (0.0, 1.5)}, "kl_warmup is 0 to 1.5"),
        ({"info_lambda": (0.5, 2.0)}, "together they must be at least 1"),
        ({"width": ("given", "huge")}, "width is given, huge"),
        ({"width": ("wide",)}, "'given' included"),
        ({"n_latent": (0, 4)}, "n_latent holds 0"),
    ],
)
def test_unknown_settings_are_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        SearchConfig(**wrong)


def test_the_objective_follows_the_model() -> None:
    autoencoder = ModelConfig(n_latent=8)
    assert measures_of(CONFIG, VAE) == OBJECTIVES["elbo"]
    assert measures_of(CONFIG, autoencoder) == OBJECTIVES["size"]
    assert measures_of(SearchConfig(objective="front"), VAE) == OBJECTIVES["front"]
    with pytest.raises(SettingError, match=r"objective is 'elbo' and model.name 'autoencoder'"):
        measures_of(SearchConfig(objective="elbo"), autoencoder)
