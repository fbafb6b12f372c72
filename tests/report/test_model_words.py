from dataclasses import asdict

import pytest

from nilatent.models import ModelConfig
from nilatent.report import model_words
from nilatent.report.references import REFERENCES


def said(config: ModelConfig, **training: object) -> str:
    model = asdict(config)
    return (
        model_words.kind(model)
        + model_words.anchor(model_words.start(model), model, training)
        + model_words.objective(model, training)
        + model_words.supervision(model)
    )


def test_a_plain_autoencoder_says_nothing_of_bounds() -> None:
    text = said(ModelConfig(n_latent=7, anchor="none"))
    assert "7 latent dimensions" in text
    assert "squared error" in text
    for word in ("bound", "anchored", "Info", "critic", "told", "pulled"):
        assert word not in text


@pytest.mark.parametrize(
    ("config", "training", "words"),
    [
        (ModelConfig(), {}, "anchored to their principal components"),
        (ModelConfig(anchor="mean"), {}, "around their mean image"),
        (ModelConfig(name="vae", sigma=0.25), {}, "Gaussian noise of SD 0.25"),
        (ModelConfig(name="vae"), {}, "most likely width"),
        (ModelConfig(name="vae", likelihood="laplace"), {}, "Laplace noise"),
        (ModelConfig(name="vae", likelihood="voxel"), {}, "variance of its own in every voxel"),
        (ModelConfig(name="vae", beta=4.0), {}, "weighed by 4 "),
        (ModelConfig(name="vae", term="tc"), {}, "total correlation alone [tc]"),
        (ModelConfig(name="vae", term="free-bits", free_bits=0.5), {}, "above 0.5 nats a latent [freebits]"),
        (ModelConfig(name="vae", term="capacity", capacity=12.0), {}, "from 12 nats [capacity]"),
        (ModelConfig(name="vae", info_alpha=0.5, info_lambda=3.0), {}, "(alpha 0.5, lambda 3)"),
        (ModelConfig(name="vae"), {"kl_warmup_epochs": 15.0}, "rose over 15 epochs"),
        (
            ModelConfig(name="spatial_vae", latent_grid=12, latent_channels=2),
            {},
            "2 latent maps on a grid of 12 x 12 x 12",
        ),
        (ModelConfig(name="spatial_vae", adversarial_from=0.5), {}, "after 50 % of the epochs"),
        (ModelConfig(name="spatial_vae"), {}, "Laplace noise"),
        (ModelConfig(condition=("age", "sex")), {}, "was told age, sex of every scan"),
        (ModelConfig(align="mmse"), {}, "pulled to mmse on the training scans"),
    ],
)
def test_what_was_set_is_said(config: ModelConfig, training: dict[str, object], words: str) -> None:
    assert words in said(config, **training)


def test_every_work_that_is_cited_is_known() -> None:
    texts = [
        said(ModelConfig(name="vae", term="tc")),
        said(ModelConfig(name="vae", term="capacity", capacity=1.0)),
        said(ModelConfig(name="vae", term="free-bits", free_bits=1.0)),
        said(ModelConfig(name="vae", info_lambda=2.0)),
        said(ModelConfig(name="spatial_vae")),
    ]
    cited = {word.split("]")[0] for text in texts for word in text.split("[")[1:]}
    assert cited == {"vae", "tc", "capacity", "freebits", "infovae", "lsgan", "patchgan"}
    assert cited <= set(REFERENCES)
