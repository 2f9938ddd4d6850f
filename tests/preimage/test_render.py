"""`Preimage` as data (JSON, what is shown, epsilon) and as a display (terminal, HTML, page)."""

import dataclasses
import errno
import io
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole
from inversionview_jax.preimage import Preimage, Query, Sample, json_format, render

HOSTILE = [
  "<script>alert(1)</script>",
  '" onmouseover="x',
  "[red]",
  "[/]",
  "\x1b[31m",
  "\u202e",
  " Paris",
  "\n",
  "é⏎",
  "\udc80",
]


def make_sample(text="615+861=1476", distance=0.05, position=8, strings=None, **kwargs):
  strings = list(text) if strings is None else strings
  effect = kwargs.pop("effect", np.linspace(-1, 1, len(strings)))
  return Sample(range(len(strings)), strings, "".join(strings), distance, position, effect, **kwargs)


def make_preimage(samples, strings=None, **kwargs):
  strings = ["<BOS>", *(strings or "615+861=1476"), "<EOS>"]
  query = Query(
      "".join(strings[1:-1]), range(len(strings)), strings, 8, "=", "a0.3", "blocks.0.attn.hook_result.3",
      np.random.default_rng(0).normal(size=32), [0.02, 0.48, 0.01, 0.02, 0.05, 0.35, 0.02, 0.02, 0.03],
  )  # fmt: skip
  given = dict(epsilon=0.1, metric="euclidean", match="anywhere", seed=0, reader="addition", task="addition")
  return Preimage(query, samples, **(given | dict(convention="centered", version="0.1.0") | kwargs))


def spread(inside, outside, **kwargs):
  """`inside` candidates within epsilon = 0.1 and `outside` beyond it, all different, in no order."""
  near = [make_sample(f"{100 + i}+861=1476", 0.0001 * (i + 1)) for i in range(inside)]
  far = [make_sample(f"{100 + i}+999=1476", 0.2 + 0.001 * i) for i in range(outside)]
  return make_preimage([s for pair in zip(far, near) for s in pair] + far[len(near) :] + near[len(far) :], **kwargs)


@pytest.fixture
def hostile():
  samples = [
    make_sample(strings=HOSTILE, position=7, ended=False),
    make_sample(distance=math.inf, position=-1, strings=[], temperature=0.7),
    make_sample("1+1", 0.3, 0),
  ]
  names = dict(reader="<script>r</script>", task='t"<b>', convention="[bold]raw", version="<i>")
  return make_preimage(samples, strings=HOSTILE, **names)


# --- data ---


def test_json_round_trip(hostile, tmp_path):
  text = hostile.to_json(tmp_path / "a.json")
  assert (
    Preimage.from_json(text)
    == hostile
    == Preimage.from_json(tmp_path / "a.json")
    == Preimage.from_json(str(tmp_path / "a.json"))
  )
  assert hostile.samples[-1].distance == math.inf
  assert (
    json.loads(text, parse_constant=pytest.fail)["samples"]["distance"][-1] is None
  )  # strict JSON knows no Infinity
  assert os.listdir(tmp_path) == ["a.json"]


def test_float32_values_survive_exactly():
  values = np.random.default_rng(1).lognormal(size=300).astype(np.float32)
  preimage = make_preimage([make_sample(distance=d) for d in values])
  back = Preimage.from_json(preimage.to_json())
  np.testing.assert_array_equal(np.float32([s.distance for s in back.samples]), np.sort(values))
  assert back == preimage


def _break(change):
  table = json.loads(make_preimage([make_sample(), make_sample()]).to_json())
  change(table)
  return json.dumps(table)


@pytest.mark.parametrize(
  "text, message",
  [
    ("{not json", "is not JSON"),
    ("", "is not JSON"),
    ("[1]", "not a JSON object"),
    (_break(lambda t: t.pop("format")), "lacks 'format'"),
    (_break(lambda t: t.update(format="parquet")), "'parquet'"),
    (_break(lambda t: t.update(format_version=4)), "upgrade"),
    (_break(lambda t: t.update(format_version="1")), "is not a version"),
    (_break(lambda t: t.pop("epsilon")), "lacks 'epsilon'"),
    (_break(lambda t: t.update(epsilon=-1)), "epsilon = -1 must be"),
    (_break(lambda t: t.update(metric="cosin")), "cosine"),
    (_break(lambda t: t.update(query=3)), "query is not"),
    (_break(lambda t: t["query"].pop("hook")), "'hook'"),
    (_break(lambda t: t["query"]["tokens"].pop()), "token_strings"),
    (_break(lambda t: t["query"].update(activation=[None])), "query.activation[0] = None"),
    (_break(lambda t: t["samples"].pop("text")), "'text'"),
    (_break(lambda t: t["samples"]["distance"].pop()), "distance has length 1"),
    (_break(lambda t: t["samples"].update(distance=7)), "samples.distance"),
    (_break(lambda t: t["samples"]["effect"][0].pop()), "effect has length 11"),
    (_break(lambda t: t["samples"].update(tokens=[0, 0])), "not a readable preimage"),
    (_break(lambda t: t["samples"]["position"].__setitem__(0, 99)), "position 99"),
    (_break(lambda t: t["samples"]["distance"].__setitem__(0, float("nan"))), "NaN is no number"),
  ],
)
def test_malformed_file_is_one_line_naming_it(text, message, tmp_path):
  path = tmp_path / "broken.json"
  path.write_text(text)
  with pytest.raises(InversionViewError, match=re.escape(message)) as caught:
    Preimage.from_json(path)
  assert "broken.json" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file():
  with pytest.raises(InversionViewError, match="nowhere.json"):
    Preimage.from_json("nowhere.json")


def test_samples_are_sorted_and_epsilon_decides_inside():
  preimage = make_preimage([make_sample(distance=d, inside=True) for d in (0.3, 0.1, math.inf, 0.0)])
  assert [s.inside for s in preimage.samples] == [True, True, False, False]  # float32(0.1) is within 0.1
  assert (len(preimage.inside), len(preimage.outside), preimage.rate) == (2, 2, 0.5)
  wider = preimage.at(0.35)
  assert len(wider.inside) == 3 and wider.at(0.1) == preimage and wider.epsilon == 0.35
  for bad in (0, -0.1, math.nan, math.inf, None, "wide"):
    with pytest.raises(InversionViewError, match="epsilon"):
      preimage.at(bad)


@pytest.mark.parametrize(
  "inside, outside, n, want",
  [
    (900, 100, 100, 80),
    (700, 300, 100, 70),
    (200, 800, 100, 60),
    (10, 900, 100, 10),
    (900, 5, 100, 95),
    (30, 30, 100, 30),
    (9, 9, 0, 0),
  ],
)
def test_shown(inside, outside, n, want):
  preimage = spread(inside, outside)
  shown = preimage.shown(n)
  assert sum(s.inside for s in shown) == want and len(shown) == min(n, inside + outside)
  assert len({s.text for s in shown}) == len(shown)  # without replacement
  assert [s.distance for s in shown] == sorted(s.distance for s in shown)
  assert shown == preimage.shown(n)


def test_another_seed_shows_others():
  preimage = spread(300, 300)
  assert preimage.shown() != dataclasses.replace(preimage, seed=1).shown()


@pytest.mark.parametrize("write", [lambda p, path: p.to_json(path), lambda p, path: render.write_page(path, p)])
def test_writing_is_all_or_nothing(write, tmp_path, hostile):
  with pytest.raises(InversionViewError, match="missing"):
    write(hostile, tmp_path / "missing" / "x")
  assert not list(tmp_path.iterdir())
  with pytest.raises(InversionViewError, match="is a folder"):
    write(hostile, tmp_path)
  path = tmp_path / "x"
  path.write_text("old")
  write(hostile, path)
  assert path.read_text(encoding="utf-8") != "old" and list(tmp_path.iterdir()) == [path]
  before = path.read_bytes()

  def full(handle):
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.MonkeyPatch.context() as patch, pytest.raises(InversionViewError, match="No space left"):
    patch.setattr(os, "fsync", full)  # a failure halfway
    write_whole(path, "half")
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- terminal ---


def printed(preimage, width=80, **kwargs):
  console = Console(
    file=io.StringIO(),
    width=width,
    force_terminal=True,
    color_system="truecolor",
    no_color=kwargs.pop("no_color", False),
  )
  render.print_preimage(preimage, console, **kwargs)
  return console.file.getvalue()


def test_line_lies_between_inside_and_outside():
  lines = str(spread(3, 2)).splitlines()
  (line,) = [i for i, text in enumerate(lines) if "── ε = 0.1 ──" in text]
  distances = [
    [float(m[1]) for m in map(re.compile(r" +(\d\.\d{4}) ").match, part) if m] for part in (lines[:line], lines[line:])
  ]
  assert distances == [[0.0001, 0.0002, 0.0003], [0.2, 0.201]]
  assert "3 of 5 candidates inside ε (60 %)" in lines and max(map(len, lines)) <= 80


def test_equal_candidates_are_counted():
  text = render.to_text(make_preimage([make_sample()] * 12 + [make_sample(distance=0.4)] * 3))
  assert "×12 615+861[=]1476" in text and "×3 615+861[=]1476" in text
  assert "12 of 15 candidates inside" in text and "15 shown (12 inside, 3 outside), 2 distinct" in text


def test_marker_with_and_without_colour():
  preimage = spread(3, 2)
  colored = printed(preimage)
  assert "\x1b[" in colored and "[=]" not in re.sub(r"\x1b\[[0-9;]*m", "", colored)
  for plain in (printed(preimage, no_color=True), printed(preimage, colors=False), render.to_text(preimage)):
    assert "100+861[=]1476" in plain
  assert "\x1b" not in render.to_text(preimage)


def test_effect_sets_the_background():
  def background(effect):
    text = printed(make_preimage([make_sample("5", 0.0, -1, effect=[effect])])).split("0.0000")[1]
    return [tuple(map(int, m)) for m in re.findall(r"48;2;(\d+);(\d+);(\d+)m5", text)]

  (strong,), (weak,), (red,) = background(1.0), background(0.3), background(-1.0)
  assert strong[2] - strong[0] > weak[2] - weak[0] > 0 > red[2] - red[0]
  assert background(0.0) == []


def test_hostile_tokens_in_a_terminal(hostile):
  text = render.to_text(hostile)
  assert "[red][/]␛[31m" in text and "\\u{202e}[ Paris]" not in text and " [Paris]" in text and "⏎" in text
  assert "\x1b" not in text and "\u202e" not in text and "∞" in text and "[<BOS>]1+1" in text
  assert "\x1b[31m" not in printed(hostile) and max(map(len, text.splitlines())) <= 80


def test_long_query_folds_with_its_bars():
  strings = [" word"] * 40
  text = render.to_text(make_preimage([make_sample(strings=strings, position=-1)], strings=strings))
  assert text.count(" word") == 80 and max(map(len, text.splitlines())) <= 80
  bars, caret = (text.splitlines()[i] for i in (6, 7))
  assert bars.rstrip().endswith("▁▁▁▁") and caret.index("^") == len(bars.rstrip()) - 4  # attention ends at the position


def test_nothing_to_show():
  assert "0 of 0 candidates inside ε (0 %)" in str(make_preimage([]))


# --- HTML ---


def test_html_escapes_everything(hostile):
  page = render.to_page([hostile, hostile], title="<script>title</script>")
  assert (
    "<script" not in page
    and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    and "<b>" not in re.sub(r"<b>\d+ of", "", page)
  )
  assert not re.search(r"<[^>]*\sonmouseover", page) and "&quot; onmouseover" in page
  assert "\x1b" not in page and "\u202e" not in page and page.encode("utf-8")


def test_page_loads_nothing(hostile):
  page = render.to_page(hostile)
  assert page.startswith("<!doctype html>") and '<meta charset="utf-8">' in page and "default-src 'none'" in page
  assert not re.search(r"https?:|url\(|@import|\ssrc=|\shref=|\sid=|<link|<script", page)
  with pytest.raises(InversionViewError, match="at least one"):
    render.to_page([])


def test_html_shows_what_the_terminal_shows():
  preimage = make_preimage([make_sample(effect=[0.123456] * 12)] * 2 + [make_sample("1+1=2", 0.4, -1)])
  text = preimage._repr_html_()
  order = ["2 of 3 candidates inside ε (67 %)", ">0.0500<", "×2", "ε = 0.1", ">0.4000<"]
  places = [text.index(piece, text.index("<section")) for piece in order]
  assert places == sorted(places)
  assert 'title="+0.123456">=</span>' in text and '<span class="iv-here iv-up" style="--e:0.123"' in text
  assert '<mark class="iv-att" style="--e:0.062" title="position 8, attention 0.0300">=</mark>' in text
  rules = re.findall(r"([^{}]+)\{", text[text.index("<style>") + 7 : text.index("</style>")])
  assert all(rule.strip().startswith((".inversionview", "@media")) for rule in rules)


def test_merged_has_each_candidate_once_and_counts_how_often_it_was_drawn():
  twice, once, far = make_sample(distance=0.05), make_sample("1+1=2", 0.06, 1), make_sample("9+9=18", 0.4, 1)
  preimage = make_preimage([twice, once, far, twice, dataclasses.replace(twice, distance=0.051, temperature=2.0)])
  merged = preimage.merged()
  assert [(s.text, s.distance, s.count) for s in merged.samples] == [
    (s.text, s.distance, n) for s, n in ((twice, 3), (once, 1), (far, 1))
  ]
  assert merged.rate == preimage.rate == 0.8 and merged.merged() == merged
  assert Preimage.from_json(merged.to_json()) == merged
  for text in (str(merged), merged._repr_html_()):
    assert "4 of 5 candidates inside ε (80 %)" in text and "×3" in text
  with pytest.raises(InversionViewError, match="drawn 0 times"):
    dataclasses.replace(once, count=0)


def test_preimages_of_the_first_version_are_read():
  preimage = make_preimage([make_sample(), make_sample("1+1=2", 0.4, -1)])
  table = json.loads(preimage.to_json())
  table["format_version"] = 1
  del table["samples"]["count"]
  assert Preimage.from_json(json.dumps(table)) == preimage


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_package_version_0_1_is_read_and_written_the_same(version):
  """Eight candidates of the shipped addition reader, merged, as version 0.1.0 wrote them (and without counts, as before that)."""
  text = (pathlib.Path(__file__).parent / "saved" / "version_2.json").read_text()
  table = json.loads(text)
  if version == 1:
    table["format_version"] = 1
    del table["samples"]["count"]
  preimage = Preimage.from_json(json.dumps(table))
  assert (preimage.query.text, preimage.query.site, preimage.query.label) == ("615+861=1476", "a0.0", "=")
  assert (preimage.reader, preimage.convention, preimage.epsilon, preimage.seed) == ("addition", "centered", 0.1, 3)
  assert sum(s.count for s in preimage.samples) == (8 if version == 2 else len(preimage.samples))
  assert all(s.inside == (s.distance <= 0.1) and len(s.effect) == len(s.tokens) for s in preimage.samples)
  assert (preimage.method, preimage.bits, preimage.converged, preimage.levels) == ("decoder", None, None, ())
  if version == 2:
    written = json.loads(preimage.to_json())
    assert {key: written[key] for key in table} == table | {"format_version": 3}
    assert set(written) - set(table) == {*json_format.COMPARISON_KEYS, *json_format.RESULT_KEYS}


# --- results of Monte Carlo ---

LEVEL = dict(epsilon=math.inf, survivors=0.5, acceptance={"redraw": 0.25}, distinct=7, moved=1.0, sweeps=3)


def monte_carlo(**kwargs):
  """Ten particles inside epsilon = 0.1 and four proposals outside."""
  samples = [make_sample(f"{100 + i}+861=1476", 0.001 * (i + 1)) for i in range(10)]
  samples += [make_sample(f"{100 + i}+999=1476", 0.2 + 0.1 * i) for i in range(4)]
  levels = [LEVEL, LEVEL | dict(epsilon=float(np.float32(0.1)))]
  given = dict(method="monte_carlo", target_runs=48_128, bits=4.71, bits_error=0.05, converged=True, levels=levels)
  return make_preimage(samples, **(given | kwargs))


def test_monte_carlo_round_trip(tmp_path):
  preimage = monte_carlo()
  text = preimage.to_json(tmp_path / "a.json")
  assert json.loads(text, parse_constant=pytest.fail)["levels"][0]["epsilon"] is None
  back = Preimage.from_json(tmp_path / "a.json")
  assert back == preimage and back.levels[0]["epsilon"] == math.inf and hash(back) == hash(preimage)
  assert back.levels == (LEVEL, LEVEL | dict(epsilon=float(np.float32(0.1))))


def _break_results(**change):
  return json.dumps(json.loads(monte_carlo().to_json()) | change)


def _break_level(**change):
  return _break_results(levels=[LEVEL | dict(epsilon=0.1) | change])


@pytest.mark.parametrize(
  "text, message",
  [
    (_break(lambda t: t.pop("method")), "lacks 'method'"),
    (_break(lambda t: t.pop("levels")), "lacks 'levels'"),
    (_break_results(method="mcmc"), "monte_carlo"),
    (_break_results(target_runs=-1), "target_runs = -1"),
    (_break_results(target_runs=1.5), "target_runs = 1.5"),
    (_break_results(bits=-0.1), "bits = -0.1"),
    (_break_results(bits="4"), "bits = '4'"),
    (_break_results(bits=float("nan")), "NaN is no number"),
    (_break_results(bits=None), "needs bits"),
    (_break_results(bits_error=True), "bits_error = True"),
    (_break_results(converged=1), "converged = 1"),
    (_break_results(problem=3), "problem = 3"),
    (_break_results(problem="stuck"), "unless converged is false"),
    (_break_results(sampled_epsilon="0.1"), "sampled_epsilon = '0.1'"),
    (_break_results(levels=3), "levels = 3"),
    (_break_results(levels=[3]), "levels[0] is not a JSON object"),
    (_break_results(levels=[{}]), "levels[0] lacks 'epsilon'"),
    (_break_level(epsilon=-1), "levels[0].epsilon = -1"),
    (_break_level(survivors=1.5), "levels[0].survivors = 1.5 must be a number from 0 to 1"),
    (_break_level(acceptance=[0.5]), "levels[0].acceptance"),
    (_break_level(acceptance={"redraw": 2}), "levels[0].acceptance['redraw'] = 2"),
    (_break_level(distinct=0.5), "levels[0].distinct = 0.5"),
    (_break_level(moved=None), "levels[0].moved = None"),
    (_break_level(sweeps="3"), "levels[0].sweeps = '3'"),
  ],
)
def test_malformed_results_are_one_line_naming_them(text, message):
  with pytest.raises(InversionViewError, match=re.escape(message)) as caught:
    Preimage.from_json(text)
  assert "\n" not in str(caught.value)


def test_particles_are_no_share_of_draws():
  preimage = monte_carlo()
  assert len(preimage.particles) == 10 and preimage.rate == 1
  for text in (render.to_text(preimage, width=120), preimage._repr_html_()):
    assert "10 particles inside ε, all of them; 4 nearest proposals outside" in text
    assert "candidates inside" not in text and "not converged" not in text
    assert "48,128 target runs" in text and "2 levels" in text and "4.71 ± 0.05" in text
  nearer, wider = preimage.at(0.0055), preimage.at(0.35)
  assert nearer.rate == 0.5 and "5 of 10 particles inside ε; 4 nearest proposals outside" in str(nearer)
  assert wider.rate == 1 and "10 particles inside ε, all of them; 2 nearest proposals outside, 2 inside" in str(wider)
  merged = dataclasses.replace(preimage, samples=[*preimage.samples, preimage.samples[0]]).merged()
  assert "11 particles inside ε, all of them" in str(merged)


def test_bits_and_convergence_do_not_outlive_their_epsilon():
  preimage = monte_carlo()
  assert preimage.at(0.1) is preimage and preimage.bits == 4.71 and preimage.converged
  nearer, wider = preimage.at(0.005), preimage.at(0.35)
  for other in (nearer, wider):
    assert (other.bits, other.bits_error, other.sampled_epsilon) == (None, None, 0.1)
    assert other.target_runs == preimage.target_runs and other.levels == preimage.levels
    assert "bits" not in str(other) and Preimage.from_json(other.to_json()) == other
  assert nearer.converged is None and nearer.problem == "" and "only a part" not in str(nearer)
  assert wider.converged is False and "only a part of 0.35, what lies inside 0.1" in render.to_text(wider, width=120)
  back = wider.at(0.1)  # what was dropped is not known again
  assert (back.converged, back.problem, back.bits, back.epsilon) == (None, "", None, 0.1)
  assert wider.at(0.005).converged is None and nearer.at(0.2).converged is False
  stuck = monte_carlo(converged=False, problem="particles have moved 1.0 times", bits=None, bits_error=None)
  assert stuck.at(0.005).problem == stuck.at(0.35).problem == stuck.problem


def test_an_exact_preimage_is_complete_at_its_own_epsilon_only():
  preimage = monte_carlo(method="exact", levels=(), converged=None, bits_error=None)
  assert preimage.at(0.005).bits is None and preimage.at(0.005).converged is None
  assert preimage.at(0.35).converged is False and preimage.at(0.35).at(0.1).problem == ""
  decoder = spread(3, 2)
  assert decoder.at(0.3).converged is None and decoder.at(0.3).sampled_epsilon is None


def test_what_has_not_converged_says_so():
  preimage = monte_carlo(converged=False, problem="<b>stuck", bits=None, bits_error=None)
  assert "not converged: <b>stuck" in str(preimage) and "not converged" in repr(preimage)
  assert "not converged: &lt;b&gt;stuck" in preimage._repr_html_() and "bits" not in str(preimage)
  assert "not converged" in printed(preimage)


def test_exact_preimages_have_every_member():
  inside = [make_sample(f"{100 + i}+861=1476", 0.01) for i in range(3)]
  preimage = make_preimage(inside, method="exact", target_runs=810_000)
  assert "3 inputs inside ε, all that there are" in str(preimage) and "810,000 target runs" in str(preimage)


def test_display_needs_no_jax():
  code = "import sys, inversionview_jax.preimage.render; sys.exit(bool({'jax', 'flax'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_notebook_shows_twenty_rows_and_folds_the_rest():
  preimage = make_preimage([make_sample(f"{n:03}+861=1476", distance=n / 500) for n in range(100, 160)])
  page = preimage._repr_html_()
  front, folded = page.split("<details>")
  assert front.count('class="iv-text"') == 20 and folded.count('class="iv-text"') == len(preimage.samples)
  assert "all 60 of them" in folded and front.count("ε = 0.1") >= 1
  few = make_preimage(preimage.samples[:20])
  assert "<details>" not in few._repr_html_() and few._repr_html_().count('class="iv-text"') == 20
  assert "<details>" not in render.fragments.section(
    preimage, render.fragments.DisplayOptions()
  )  # pages fold in their own way
