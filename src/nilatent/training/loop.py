"""Training: one visible loop that can be killed at any moment and goes on to the same bits."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from nilatent.errors import NilatentError, SettingError
from nilatent.models import Autoencoder, ModelConfig, Vae, build
from nilatent.models.losses import elbo, gaussian_kl, gaussian_log_likelihood, optimal_variance, squared_error
from nilatent.progress import track
from nilatent.provenance import atomic, hash_values
from nilatent.training import diagnostics
from nilatent.training.checkpoint import (
    FORMAT_VERSION,
    TrainedModel,
    load_model,
    module_from_state,
    read_tensors,
    save_model,
    write_tensors,
)
from nilatent.training.diagnostics import Fit
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

MAX_GRADIENT_NORM = 1.0
# An epoch counts as better only when it explains at least this much more of the validation variance.
MIN_GAIN = 1e-4
PRECISIONS = ("auto", "32-true", "bf16-mixed")
