"""Simulated cohorts with planted truth, on disk or in memory: what every inferential claim is calibrated on."""

from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.dataset import simulate
from nilatent.simulate.memory import SimulatedCohort, simulate_maps

__all__ = ["SimulatedCohort", "SimulationConfig", "simulate", "simulate_maps"]
