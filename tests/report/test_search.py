import pandas as pd
import xarray as xr

from nilatent.finding import Finding
from nilatent.report.search import REFERENCES, paragraph


def test_the_paragraph_follows_what_was_done() -> None:
    table = pd.DataFrame({"trial": range(4), "state": ["finished", "failed", "finished", "stopped early"]})
    settings = {
        "searched": ["learning_rate", "width"],
        "objective": ["validation_fvu", "n_values"],
        "search": {"n_seeds": 5},
    }
    text = paragraph(Finding("search", "Q?", "A.", table, xr.Dataset(), settings, (), 30, 30))
    assert "(learning rate, channels)" in text
    assert "variance left unexplained and the number of values in the latent of the validation scans: 4 trials" in text
    assert "of which 2 finished" in text
    assert "5 further seeds" in text
    assert all(f"[{key}]" in text for key in REFERENCES)
