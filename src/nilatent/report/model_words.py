"""The model in words, from the settings that the model folder holds."""

from collections.abc import Mapping
from typing import Any

from nilatent.report.page import number_text
from nilatent.report.study import count


def start(model: Mapping[str, Any]) -> str:
    """Where the model started: ``"pca"``, ``"local"``, ``"mean"`` or ``"none"``."""
    asked = str(model.get("anchor", "none"))
    if asked == "auto":
        return "local" if model.get("name") == "spatial_vae" else "pca"
    return asked


def kind(model: Mapping[str, Any]) -> str:
    """What it is, and how large its latent."""
    if model.get("name") == "spatial_vae":
        side = model["latent_grid"]
        maps = count(int(model["latent_channels"]), "latent map")
        return f"A variational autoencoder [vae] with {maps} on a grid of {side} x {side} x {side}"
    called = "A variational autoencoder [vae]" if model.get("name") == "vae" else "An autoencoder"
    return f"{called} with {model.get('n_latent')} latent dimensions"


def anchor(begun: str, model: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What the start means for encoder and decoder."""
    if training.get("start_from"):
        return ", starting from a model that was trained on other scans, whose anchor it keeps"
    if begun == "pca":
        curve = (
            " plus, where that predicts left-out training scans, a kernel regression of what they miss on the scores"
        )
        added = curve if model.get("curve", True) else ""
        return (
            f", anchored to their principal components: the decoder is the mean image plus the components{added} plus a "
            "convolutional network that starts at zero, and likewise the encoder (without the regression)"
        )
    if begun == "local":
        return (
            ", anchored to the principal components of every block of voxels under a cell of the grid: the decoder is the mean "
            "image plus these components plus a convolutional network that starts at zero, and likewise the encoder"
        )
    return ", around their mean image" if begun == "mean" else ""


def objective(model: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The terms of the loss, as far as they differ from the squared error of an autoencoder."""
    name = model.get("name")
    if name not in ("vae", "spatial_vae"):
        return " The loss was the squared error inside the mask."
    noise = "laplace" if name == "spatial_vae" else str(model.get("likelihood", "gaussian"))
    width = f"SD {number_text(model['sigma'])}" if model.get("sigma") else "its most likely width in every batch"
    kinds = {"gaussian": f"Gaussian noise of {width}", "laplace": f"Laplace noise of {width}"}
    noise = kinds.get(noise, "Gaussian noise with a variance of its own in every voxel")
    terms = {
        "tc": "of the divergence from the prior, its total correlation alone [tc]",
        "free-bits": f"the divergence from the prior above {number_text(model.get('free_bits', 0))} nats a latent [freebits]",
        "capacity": f"the distance of the divergence from {number_text(model.get('capacity', 0))} nats [capacity]",
    }
    held = terms.get(str(model.get("term", "kl")), "the divergence from the prior")
    text = (
        f" The loss was the negative evidence lower bound under {noise}, summed over voxels, with {held} weighed by "
        f"{number_text(model.get('beta', 1.0) * (1.0 - model.get('info_alpha', 0.0)))} (1 is the bound itself)."
    )
    if (model.get("info_alpha", 0.0), model.get("info_lambda", 1.0)) != (0.0, 1.0):
        text += (
            f" An Info-VAE term [infovae] (alpha {number_text(model['info_alpha'])}, lambda "
            f"{number_text(model['info_lambda'])}) drew the latents of all scans together towards the prior."
        )
    if training.get("kl_warmup_epochs"):
        text += f" The weight of the divergence rose over {number_text(training['kl_warmup_epochs'])} epochs."
    if name == "spatial_vae" and model["perceptual"]:
        text += (
            " A multi-scale perceptual term (Laplacian pyramid and edges, no foreign network) had weight "
            f"{number_text(model['perceptual'])}."
        )
    if name == "spatial_vae" and model["adversarial"]:
        text += (
            f" A least-squares patch critic [lsgan] [patchgan] had weight {number_text(model['adversarial'])} after "
            f"{number_text(100 * model['adversarial_from'])} % of the epochs."
        )
    return text


def supervision(model: Mapping[str, Any]) -> str:
    """What the model was told beside the images."""
    text = ""
    if model.get("condition"):
        text += f" The model was told {', '.join(model['condition'])} of every scan; its latents hold what is left."
    if model.get("align"):
        text += f" Its first latent was pulled to {model['align']} on the training scans."
    return text
