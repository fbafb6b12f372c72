import pytest

from nilatent.errors import SettingError
from nilatent.pipeline import check_names


def test_unknown_stage_or_analysis_is_refused():
    with pytest.raises(SettingError, match="Did you mean 'lrcp'"):
        check_names("report", ["lrpc"])
    with pytest.raises(SettingError, match="model, latents, findings, report"):
        check_names("reprot", [])
