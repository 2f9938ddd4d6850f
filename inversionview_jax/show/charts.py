"""Figures: patching experiments and readers' rates as bars, completeness as a histogram; needs matplotlib (the extra `plots`).

Every function takes the result of a measurement and writes complete files or none.
"""

import importlib.util
import io
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from inversionview_jax.measures.coverage import Completeness
  from inversionview_jax.measures.evaluation import Evaluation

_BAR, _EDGE = "#4f7fd6", "#1c2127"
_INSIDE, _OUTSIDE, _BASE = "#2166ac", "#b2182b", "#999999"
_NAMES = {"kl": "KL (nats)", "top_logit": "fall of the top logit"}
_MAX_COMPONENTS = 20  # of a direct logit attribution
MISSING = "no charts: matplotlib is not installed; pip install 'inversionview_jax[plots]'"


def available() -> bool:
  """Whether matplotlib is installed."""
  return importlib.util.find_spec("matplotlib") is not None


def check() -> None:
  """Raises `InversionViewError` if matplotlib is missing; called before the work whose result is drawn."""
  if not available():
    raise InversionViewError(MISSING)


def write_chart(result: dict[str, Any], stem: "str | os.PathLike") -> list[pathlib.Path]:
  """Draws a result of `experiments.run` and writes it as `stem`.png and `stem`.svg.

  A patch has a panel per order: the fall of the logit difference when the heads up to this one are patched. An ablation has a panel per
  metric: its effect on the predictions at each position. A direct logit attribution shows the heads that contribute most to the logit
  difference. Error bars are one standard error.

  Args:
    result: as data.
    stem: the path without its ending.

  Returns:
    The two paths.

  Raises:
    InversionViewError: matplotlib is missing, or the files cannot be written.
  """
  check()
  import matplotlib
  from matplotlib.figure import Figure

  panels = _panels(result)
  most = max(len(names) for _, _, names, _ in panels)
  longest = max(len(line) for _, _, names, _ in panels for name in names for line in name.split("\n"))
  # Not pyplot's figure: no window and no global state. Text stays text, ids are reproducible.
  with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "inversionview", "svg.fonttype": "none"}):
    figure = Figure(figsize=(1.2 + len(panels) * (0.5 * most + 0.9), 2.8 + 0.05 * longest), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=result["kind"] == "patch", squeeze=False)[0]
    for axis, (title, label, names, values) in zip(axes, panels, strict=True):
      means, errors = [v["mean"] for v in values], [v["se"] or 0.0 for v in values]
      axis.bar(range(len(names)), means, yerr=errors, color=_BAR, edgecolor=_EDGE, linewidth=0.5, capsize=2)
      axis.axhline(0, color=_EDGE, linewidth=0.6)
      slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 3 else {}
      axis.set_xticks(range(len(names)), names, parse_math=False, **slant)
      axis.set_title(title, parse_math=False)
      if axis is axes[0] or result["kind"] != "patch":
        axis.set_ylabel(label)
      axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['about']} (n = {result['pairs']:,})", parse_math=False)
    written = []
    for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
      drawn = io.BytesIO()
      figure.savefig(drawn, format=kind, **options)
      written.append(pathlib.Path(f"{stem}.{kind}"))
      write_whole(written[-1], drawn.getvalue())
  return written


def _panels(result: dict[str, Any]) -> list[tuple[str, str, list[str], list[dict]]]:
  """(title, label of the y axis, names, values) of each panel; a value has "mean" and "se"."""
  if result["kind"] == "patch":
    return [
      (
        table["order"],
        "logit difference lost",
        # a line for each site, where several are patched at once
        [row["name"].replace(" ", "\n").replace("+\n", "+ ") for row in table["rows"]],
        [row["logit_difference"] for row in table["rows"]],
      )
      for table in result["results"]
    ]
  if result["kind"] == "attribute":
    rows, roles = result["results"][0]["rows"][:_MAX_COMPONENTS], result["settings"]["roles"]
    label = f"logit of {roles[0]} - {roles[1]}"
    return [(label, label, [row["name"] for row in rows], [row["logit_difference"] for row in rows])]
  (table, *_), several = result["results"], len({row["name"] for row in result["results"][0]["rows"]}) > 1
  names = [f"{row['read']} ({row['name']})" if several else row["read"] for row in table["rows"]]
  return [(label, label, names, [row[metric] for row in table["rows"]]) for metric, label in _NAMES.items()]


def rates(path: "str | os.PathLike", evaluation: "Evaluation") -> None:
  """Draws each site's in-epsilon rate with its 95 % interval, next to the rate of random inputs."""
  sites = evaluation.sites
  figure, axes = _figure(1, width=max(6.0, 0.5 * len(sites) + 2.0), height=3.4)
  x, value = np.arange(len(sites)), np.array([site.rate.value for site in sites])
  low, high = (np.array([getattr(site.rate, side) for site in sites]) for side in ("low", "high"))
  axes.bar(x, value, 0.7, color=_INSIDE, label="samples of the reader")
  axes.errorbar(x, value, yerr=np.maximum([value - low, high - value], 0), fmt="none", ecolor="black", capsize=2, lw=1)
  axes.bar(
    x, [site.base for site in sites], 0.7, facecolor="none", edgecolor=_BASE, hatch="////", label="random inputs"
  )
  axes.set_xticks(x, [site.name for site in sites], rotation=60)
  axes.set_ylim(0, 1)
  axes.set_ylabel(f"share within ε = {evaluation.epsilon:g}")
  axes.set_title(
    f"{evaluation.reader}: mean over sites {evaluation.rate:.3f}, random inputs {evaluation.base:.3f}", fontsize=9
  )
  figure.legend(fontsize=8, loc="outside lower center", ncols=2)
  _save(path, figure)


def completeness(path: "str | os.PathLike", results: "Sequence[Completeness]") -> None:
  """Draws distance against log-probability of every input, a panel per query (paper, appendix on completeness)."""
  from matplotlib.colors import LogNorm

  columns = min(len(results), 4)
  figure, axes = _figure(len(results), width=3.3 * columns, height=3.0 * -(-len(results) // columns), columns=columns)
  for axis, result in zip(np.atleast_1d(axes).flat, results):
    keep = np.isfinite(result.distance)
    axis.hist2d(result.distance[keep], result.log_prob[keep], bins=80, norm=LogNorm(), cmap="viridis")
    axis.set_xlim(
      0, max(2 * result.epsilon, result.distance[keep].max(initial=0.0))
    )  # so that epsilon is in the picture
    axis.axvline(result.epsilon, color=_OUTSIDE, lw=1)
    axis.set_title(f"{result.site} at {result.label}, {result.text}", fontsize=8)
    axis.set_xlabel("distance", fontsize=8)
    axis.set_ylabel("log p(input | activation)", fontsize=8)
    axis.tick_params(labelsize=7)
  for axis in np.atleast_1d(axes).flat[len(results) :]:
    axis.set_axis_off()
  _save(path, figure)


def _figure(panels: int, width: float, height: float, columns: int = 1) -> "tuple[Figure, Any]":
  """A figure and its axes."""
  check()
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  return figure, figure.subplots(-(-panels // columns), columns)


def _save(path: "str | os.PathLike", figure: "Figure") -> None:
  page = io.BytesIO()
  figure.savefig(page, dpi=150, format="png")
  write_whole(path, page.getvalue())
