import pytest

from nilatent.errors import SettingError
from nilatent.simulate import SimulationConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "pet"}, "kind is one of gm, t1, got 'pet'"),
        ({"confounded": "sex"}, "confounded is one of none, age, site"),
        ({"n_subjects": 0}, "n_subjects lies between 1 and 99999, got 0"),
        ({"seed": -1}, "seed lies between"),
        ({"spacing_mm": 0.5}, "spacing_mm lies between 1 and 6"),
        ({"spacing_mm": float("nan")}, "spacing_mm lies between 1 and 6, got nan"),
        ({"native_spacing_mm": 9}, "native_spacing_mm lies between"),
        ({"n_sites": 0}, "n_sites lies between"),
        ({"n_sessions": 0}, "n_sessions lies between"),
        ({"missed_fraction": 1.5}, "missed_fraction lies between"),
        ({"n_sessions": 2, "interval_years": 0.1}, "interval_years lies between"),
        ({"group_fraction": 1.1}, "group_fraction lies between"),
        ({"advanced_fraction": 0.6}, "advanced_fraction lies between 0 and 0.5"),
        ({"site_effect": -1}, "site_effect lies between"),
        ({"deformation": 3}, "deformation lies between"),
        ({"n_causes": -1}, "n_causes lies between 0 and 99, got -1"),
        ({"n_causes": 100}, "n_causes lies between 0 and 99, got 100"),
        ({"noise": -0.1}, "noise lies between"),
        ({"effect": -1}, "effect lies between"),
        ({"regions": ("Insula_L",)}, "1 regions .* and 4 losses"),
        ({"regions": ("Insula_L", "Insula_L"), "losses": (0.1, 0.2)}, "named once"),
        ({"regions": (), "losses": ()}, "At least one region"),
        ({"regions": ("Insula_L",), "losses": (1.5,)}, "the loss of Insula_L lies between 0 and 1"),
        ({"confounded": "site", "n_sites": 1}, "needs at least 2 sites, n_sites is 1"),
    ],
)
def test_nonsense_is_refused_with_rule_and_value(settings, words):
    with pytest.raises(SettingError, match=words):
        SimulationConfig(**settings)


@pytest.mark.parametrize("extra", [{}, {"n_sessions": 4}, {"advanced_fraction": 0.1}, {"class_mediated": True}])
def test_advice_on_too_strong_an_effect_is_accepted_when_followed(extra):
    with pytest.raises(SettingError, match="at most 95%") as caught:
        SimulationConfig(effect=9.0, **extra)
    advised = float(str(caught.value).split("Lower effect to ")[1].split(" ")[0])
    SimulationConfig(effect=advised - 0.01, **extra)
    with pytest.raises(SettingError):
        SimulationConfig(effect=advised + 0.02, **extra)
