"""Plans: what a config takes on devices that are not here, read from programs that are compiled and never run."""

from inversionview_jax.planning.planning import Program, check, check_monte_carlo, monte_carlo, sampler, training_step
from inversionview_jax.planning.report import plan_data
from inversionview_jax.planning.scenario import Scenario, scenario_of

__all__ = [
  "Program",
  "Scenario",
  "check",
  "check_monte_carlo",
  "monte_carlo",
  "plan_data",
  "sampler",
  "scenario_of",
  "training_step",
]
