"""Milliseconds from a moved slider to the bytes of the volume, on a grid of 2 mm, through the explorer's own server.

A model of each kind is made as its training starts (principal components, a network that has not learnt; its arithmetic is
that of a trained one) on simulated scans, or read from a run. A client on the same machine asks /api/decode over one
connection for another place each time. "decoder" is the decoder alone; the rest is the calibrated NIfTI file, HTTP and the
copy to the client. "on the screen" is from the slider's event in headless Chromium to other pixels in the picture, which
software draws there (swiftshader; a graphics card is faster); left out where playwright or Chromium is missing. Wall time and
the processor time of the process, medians; other work on the machine disturbs the former.

    OMP_NUM_THREADS=2 python benchmarks/explore.py
    OMP_NUM_THREADS=2 python benchmarks/explore.py --run RUN
"""

import argparse
import http.client
import importlib.util
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measured import machine
from scipy import ndimage, sparse

from nilatent.atlas import RegionWeights
from nilatent.cohort import Cohort
from nilatent.config import RunConfig
from nilatent.encode import encode
from nilatent.explore.answers import Answers
from nilatent.explore.drawing import Drawer
from nilatent.explore.guard import TOKEN_HEADER
from nilatent.explore.server import Server
from nilatent.explore.study import Explored, explored, open_explored
from nilatent.models import ModelConfig
from nilatent.pools import Pools
from nilatent.spaces import space_of
from nilatent.training.checkpoint import load_model
from nilatent.training.loop import TrainConfig, train
from nilatent.volumes import Grid, gm_mask, template, volumes_in_memory

N_SCANS, N_TRAINING, N_TIMES = 32, 24, 30
N_DRAWN = 20
LIMIT_MS = 150.0
STEPS = """async (times) => {
  const panel = document.querySelector('[data-panel="moved"]');
  const canvas = panel.querySelector("canvas");
  const gl = canvas.getContext("webgl2");
  const slider = document.querySelector("#sliders input");
  // Read in the task that draws: it waits for the drawing to be done, and shows that it is another picture.
  const pixels = () => {
    const read = new Uint8Array(4 * canvas.width * canvas.height);
    gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, read);
    return read;
  };
  const taken = [];
  let before = null;
  for (let time = 0; time < times; time++) {
    const drawn = new Promise((resolve) => {
      const seen = new MutationObserver(() => { seen.disconnect(); resolve(pixels()); });
      seen.observe(panel, { attributeFilter: ["data-count"] });
    });
    const begin = performance.now();
    slider.value = Number(slider.min) + ((time + 1) / (times + 1)) * (slider.max - slider.min);
    slider.dispatchEvent(new Event("input"));
    const now = await drawn;
    taken.push(performance.now() - begin);
    if (before && now.every((one, at) => one === before[at])) throw new Error("The picture did not change.");
    before = now;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return taken;
}"""
GPU = (16, 32, 64, 128)
MODELS = {
    "autoencoder": ModelConfig(name="autoencoder", n_latent=16, channels=GPU),
    "vae": ModelConfig(name="vae", n_latent=16, channels=GPU),
    "vae, plain": ModelConfig(name="vae", n_latent=64, channels=GPU, anchor="none"),
    "spatial_vae, 12": ModelConfig(name="spatial_vae", channels=GPU, latent_grid=12),
    "spatial_vae, 24": ModelConfig(name="spatial_vae", channels=GPU),
}


def study_of(config: ModelConfig, spacing_mm: float) -> Explored:
    """A run in memory of scans that are the template with a smooth field of their own each."""
    grid, rng = Grid.mni(spacing_mm), np.random.default_rng(0)
    prior = template("gm", grid).get_fdata(dtype=np.float32)
    sides = [side / 8 for side in grid.shape]
    ids = pd.Index([f"sub-{number:02d}" for number in range(N_SCANS)], name="scan_id")
    scans = pd.DataFrame({"subject_id": ids, "dataset": "simulated", "age": rng.uniform(20, 80, N_SCANS)}, index=ids)
    array = np.empty((N_SCANS, *grid.shape), dtype=np.float16)
    for one in array:
        coarse = rng.normal(size=(8, 8, 8))
        one[...] = prior * (1 + 0.3 * ndimage.zoom(coarse, sides, order=1))
    mask = gm_mask(grid)
    volumes = volumes_in_memory(array, mask=mask, grid=grid, scans=scans)
    part = np.where(np.arange(N_SCANS) < N_TRAINING, "train", np.where(np.arange(N_SCANS) < 28, "validation", "test"))
    parts = pd.DataFrame({"subject_id": ids, "part": part, "fold": 0}, index=ids)
    folder = Path(tempfile.mkdtemp())
    train(volumes, parts, config, TrainConfig(n_epochs=0), folder, scans=scans)
    model = load_model(folder)
    latents = encode(model, volumes, parts)
    one_region = RegionWeights(sparse.csr_matrix(np.ones((1, int(mask.sum())))), np.arange(1), ["all"], pd.DataFrame())
    settings = RunConfig()
    settings = replace(settings, study=replace(settings.study, covariates=("age",)))
    nothing = pd.DataFrame(columns=["scan_id", "path", "stage", "rule", "reason"])
    pools = Pools(folder, settings, Cohort(scans, nothing, {}), volumes, parts, one_region, one_region)
    pools.__dict__["latents"] = latents
    return explored(pools, space_of(model, latents, n_components=8))


def medians(run: Callable[[int], object]) -> tuple[float, float]:
    """Median milliseconds of the wall and of the processor, the first calls left out."""
    taken = []
    for number in range(N_TIMES + 3):
        wall, own = time.perf_counter(), time.process_time()
        run(number)
        taken.append((time.perf_counter() - wall, time.process_time() - own))
    wall, own = 1000 * np.median(taken[3:], axis=0)
    return float(wall), float(own)


def on_screen(address: str) -> float:
    """Median milliseconds from a slider's event to other pixels in Chromium; NaN without one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        return float("nan")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        software = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=software)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        taken = page.evaluate(STEPS, N_DRAWN + 2)
        browser.close()
    return float(np.median(taken[2:]))


def measure(name: str, study: Explored) -> None:
    drawer = Drawer(study)
    server = Server(Answers(study, drawer))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    link = http.client.HTTPConnection("127.0.0.1", server.door.port)
    headers = {TOKEN_HEADER: server.door.token, "Content-Type": "application/json"}
    scan, step = str(study.space.scans[0]), study.slides[0].direction.step

    def asked(number: int) -> None:
        body = {"scan": scan, "moves": {"0": 0.01 * number}}
        link.request("POST", "/api/decode", json.dumps(body), headers)
        answer = link.getresponse()
        if answer.status != 200 or len(answer.read()) < 1000:
            raise SystemExit(f"The explorer answered {answer.status}.")

    def decoded(number: int) -> None:
        next(iter(study.space.moved(np.array([0]), 0.01 * number * step[None])))

    whole, alone, drawn = medians(asked), medians(decoded), on_screen(server.door.address)
    shape = "x".join(map(str, study.pools.volumes.grid.shape))
    kept = "yes" if whole[0] <= LIMIT_MS else "NO"
    times = " | ".join(f"{one:.0f}" for one in (*whole, *alone, drawn))
    print(f"| {name} | {shape} | {times} | {kept} |", flush=True)
    server.shutdown()
    drawer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run, in place of the simulated models")
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    print(f"{machine(torch.get_num_threads())}\n")
    print(
        "| model | grid | step, ms | of the processor | decoder, ms | of the processor | on the screen, ms | within 150 ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    if given.run is not None:
        measure(given.run.name, open_explored(given.run))
        return
    for name in given.models:
        measure(name, study_of(MODELS[name], given.spacing_mm))


if __name__ == "__main__":
    main()
