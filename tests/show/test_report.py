"""Reports: one page of many preimages, from a folder or a config."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from inversionview_jax import cli, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.show import report

HOSTILE = ["<script>alert(1)</script>", '" onmouseover="x', "'><img src=x onerror=y>", "\u202e", "\n"]
COUNTING = tasks.get("counting")


def make_preimage(
  task="addition", site="a0.1", text="615+861=1476", position=8, label="=", samples=40, seed=0, strings=None, **kwargs
):
  rng = np.random.default_rng(seed)
  strings = list(text) if strings is None else strings
  drawn = []
  for d in rng.lognormal(-2.5, 1.2, samples):
    shuffled = [strings[k] for k in rng.permutation(len(strings))]  # so that no two are the same
    ids = [int(c) if c.isdigit() else 0 for c in shuffled]
    effect, nearest = rng.uniform(-1, 1, len(ids)), min(position, len(ids))
    drawn.append(
      Sample(ids, shuffled, "".join(shuffled), d, nearest, effect, temperature=1.0, noise=float(rng.integers(4)) / 10)
    )
  every = ["<BOS>", *strings, "<EOS>"]
  query = Query(
    text,
    range(len(every)),
    every,
    position,
    label,
    site,
    f"blocks.{site}",
    rng.normal(size=4),
    rng.dirichlet(np.ones(position + 1)),
  )
  given = {
    "epsilon": 0.1,
    "metric": "euclidean",
    "match": "anywhere",
    "reader": task,
    "task": task,
    "convention": "centered",
    "version": "1",
  }
  return Preimage(query, drawn, seed=seed, **(given | kwargs))


def real(reader="addition", samples=60, **kwargs):
  """A preimage whose texts are inputs of the task, so that what it encodes can be measured."""
  task = tasks.get("addition")
  rng = np.random.default_rng(3)
  index = rng.integers(task.num_inputs, size=samples)
  drawn = []
  for row, d in zip(task.tokens(index), rng.lognormal(-2.5, 1.2, samples), strict=True):
    row[1] = 6  # the query's first digit
    used = [int(t) for t in row if t not in (task.tokenizer.bos_id, task.tokenizer.eos_id, task.tokenizer.pad_id)]
    drawn.append(
      Sample(used, task.tokenizer.strings(used), task.tokenizer.text(used), d, 8, rng.uniform(-1, 1, len(used)))
    )
  tokens = task.tokenizer.encode_batch(["615+861=1476"], task.length, eos=True)[0].tolist()
  query = Query(
    "615+861=1476", tokens, task.tokenizer.strings(tokens), 8, "=", "a0.1", "blocks.0.attn.hook_result.1", [1.0, 2.0]
  )
  return Preimage(query, drawn, 0.1, "euclidean", "anywhere", 0, reader, "addition", "centered", "1")


@pytest.fixture
def inversionview(monkeypatch, capsys, tmp_path):
  """A function (arguments) -> (exit code, stdout, stderr), in the folder `tmp_path`."""
  monkeypatch.chdir(tmp_path)

  def run(*argv):
    code = cli.main([str(argument) for argument in argv])
    return code, *capsys.readouterr()

  return run


@pytest.mark.slow
def test_fifty_preimages_of_long_texts_stay_under_two_megabytes():
  text = "vvzccvczvvvzvcvcvczzvcvczvv|v:9"  # as long as an input of counting can be
  pages = [make_preimage("counting", text=text, position=29, label=":", samples=100, seed=k) for k in range(50)]
  assert len(text) == COUNTING.length - 2
  page = report.to_report(pages, command="inversionview report P --out r.html")
  assert page.count("<section") == 50 and page.count('<td class="iv-d"') == 50 * 30
  assert len(page.encode()) < 2e6


def test_page_runs_and_loads_nothing():
  page = report.to_report(
    [make_preimage(), make_preimage(strings=HOSTILE, text="".join(HOSTILE), position=1, label=HOSTILE[0], site="<b>")]
  )
  assert "default-src 'none'" in page and not re.search(r"https?:|url\(|@import|<link|<script|<img|<iframe", page)
  assert re.search(r"\shref=", page) and all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', page))
  for tag in re.findall(r"<[^>]*>", page[page.index("<body>") :]):
    assert not re.search(r"\s(on\w+|src)\s*=", re.sub(r'="[^"]*"', "=", tag)), tag
  assert "\u202e" not in page and "&lt;script&gt;" in page


def test_the_index_links_to_every_preimage_in_order_of_the_forward_pass():
  every = [make_preimage(site=site, position=p, label=label, seed=k)
           for k, (site, p, label) in enumerate([("x1.post", 8, "="), ("a0.1", 8, "="), ("a0.1", 4, "+"), ("x0.pre", 8, "="), ("a0.1", 8, "=")])]  # fmt: skip
  page = report.to_report(every)
  anchors, links = (
    re.findall(r'<section class="inversionview" id="([^"]*)"', page),
    re.findall(r'href="#([^"]*)"', page),
  )
  assert len(set(anchors)) == 5 and sorted(links) == sorted(anchors)
  index = page[page.index('<table class="rp-index">') : page.index('<table class="iv-rates">')]
  assert re.findall(r'<th scope="row">([^<]*)', index) == ["x0.pre", "a0.1", "x1.post"]
  assert re.findall(r'<th scope="col">([^<]*)', index) == ["+", "="]
  for p, anchor in zip(every, anchors, strict=True):
    assert f'href="#{anchor}" style="--r:{p.rate:.2f}"' in index


def test_rates_histogram_and_command_are_there():
  every = [make_preimage(seed=k) for k in range(3)]
  page = report.to_report(every, title="A <title>", command="inversionview report 'a b' --out x.html")
  assert "<h1>A &lt;title&gt;</h1>" in page and "inversionview report &#x27;a b&#x27; --out x.html" in page
  mean = 100 * sum(p.rate for p in every) / 3
  assert f">{mean:.0f} % of 3<" in page
  for p in every:
    assert f"{len(p.inside)} of 40 candidates at or below epsilon 0.1" in page


def test_encoded_features_are_measured_where_the_task_is_known():
  page = report.to_report([real(), dataclasses.replace(real(), task="unknown")])
  assert page.count('<table class="iv-features">') == 1
  table = re.search(r'<table class="iv-features">.*?</table>', page, re.DOTALL).group()
  assert re.search(r'<tr class="iv-encodes"><th scope="row">F1 = <code>6</code></th><td [^>]*>100 %</td>', table)


def test_particles_are_shown_with_their_bits_and_what_has_not_converged():
  level = dict(epsilon=0.1, survivors=0.5, acceptance={"redraw": 0.2}, distinct=9, moved=1.0, sweeps=3)
  results = dict(method="monte_carlo", target_runs=9_216, bits=3.06, bits_error=0.05, converged=True, levels=[level])
  particles = dataclasses.replace(real(), **results)
  stuck = dataclasses.replace(particles, converged=False, problem="<stuck>", bits=None, bits_error=None)
  page = report.to_report([particles, stuck, real()])
  index = page[page.index('<table class="rp-index">') : page.index("<main>")]
  inside = len({s.tokens for s in particles.inside})
  shown = re.findall(r">([^<>]*)</a>", index)
  assert shown[:2] == ["3.1 bits", f"{inside}?"] and shown[2].endswith("%") and "? has not converged" in index
  assert "information by site, mean" in index and ">3.06 bits<" in index and "in-epsilon rate" in index
  assert page.count("not converged: &lt;stuck&gt;") == 2 and "9,216 target runs" in page
  captions = re.findall(r"<caption>(What [^<]*)", page)
  assert captions == ["What it encodes", "What it encodes", "What the decoder's candidates share"]
  assert page.count("(temperature, noise)") == 1  # of the decoder's alone


def test_files_that_cannot_be_read_are_named_and_the_others_shown(inversionview, tmp_path):
  folder = tmp_path / "P" / "below"
  folder.mkdir(parents=True)
  make_preimage().to_json(folder / "good.json")
  newer = json.loads(make_preimage().to_json())
  newer["format_version"] = 99
  (folder / "newer.json").write_text(json.dumps(newer))
  (tmp_path / "P" / "half.json").write_text(make_preimage().to_json()[:500])
  (tmp_path / "P" / "other.json").write_text('{"format": "inversionview-evaluation", "format_version": 1}')
  code, out, error = inversionview("report", "P", "--out", "r.html")
  page = (tmp_path / "r.html").read_text()
  assert code == 0 and out.startswith("1 preimages") and error.count("left out") == 3
  for name, why in (
    ("below/newer.json", "format_version 99 is newer"),
    ("half.json", "not JSON"),
    ("other.json", "inversionview-evaluation"),
  ):
    assert any(name in line and why in line for line in error.splitlines())
    assert name in page and html.escape(why) in page
  assert page.count("<section") == 1 and "inversionview report P --out r.html" in page


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--out", "r.html"], "give one of the three"),
    (["P", "--config", "c.py", "--out", "r.html"], "give one of the three"),
    (["missing", "--out", "r.html"], "no folder 'missing'"),
    (["empty", "--out", "r.html"], "no preimage in 'empty'"),
    (["P", "--out", "missing/r.html"], "missing"),
    (["P", "--out", "P"], "folder"),
    (["P", "--out", "r.html", "--shown", "0"], "--shown 0"),
    (["P", "--out", "r.html", "--save", "S"], "--save"),
    (["P", "--out", "r.html", "--colour"], "--colour"),
    (["--config", "none.py", "--out", "r.html"], "none.py"),
    (["--config", "empty.py", "--out", "r.html"], "no queries"),
    (["--config", "short.py", "--out", "r.html"], "(reader, text, site, position)"),
  ],
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(inversionview, tmp_path, argv, message):
  (tmp_path / "P").mkdir()
  (tmp_path / "empty").mkdir()
  make_preimage().to_json(tmp_path / "P" / "p.json")
  start = "from ml_collections import ConfigDict\ndef get_config(_=''):\n  return ConfigDict("
  (tmp_path / "empty.py").write_text(start + "{'seed': 0})\n")
  (tmp_path / "short.py").write_text(start + "{'queries': (('addition', '1+1'),)})\n")
  before = {path for path in tmp_path.rglob("*")}
  code, out, error = inversionview("report", *argv)
  assert (code, out) == (2, "") and message in error and error.count("\n") == 1
  assert {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)} == before


@pytest.mark.usefixtures("quick_to_compile")
def test_from_a_config_and_again_from_the_saved_preimages(inversionview, tmp_path, save_small):
  save_small(tmp_path / "W")
  (tmp_path / "c.py").write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(_=''):\n"
    "  queries = (('W', '615+861=1476', 'a0.1', '='), ('W', '615+861=1476', 'x0.mid', 'A1'))\n"
    "  return ConfigDict({'title': 'Small', 'shown': 5, 'num_samples': 40, 'seed': 0, 'method': 'decoder', 'queries': queries})\n"
  )
  code, out, error = inversionview("report", "--config", "c.py", "--out", "r.html", "--save", "S", "--config.seed=4")
  assert (code, error) == (0, "") and out.startswith("2 preimages")
  page, saved = (tmp_path / "r.html").read_text(), sorted((tmp_path / "S").iterdir())
  assert "<h1>Small</h1>" in page and "--config.seed=4" in page and page.count('<td class="iv-d"') <= 10
  preimages = [Preimage.from_json(path) for path in saved]
  assert [(p.query.site, p.query.label, p.seed, len(p.samples)) for p in preimages] == [
    ("a0.1", "=", 4, 40),
    ("x0.mid", "A1", 4, 40),
  ]
  inversionview("report", "S", "--out", "again.html", "--shown", "5", "--title", "Small")
  again = (tmp_path / "again.html").read_text()
  assert again[again.index("<main>") :] == page[page.index("<main>") :]
  shutil.rmtree(tmp_path / "S")
  assert inversionview("report", "S", "--out", "third.html")[0] == 2


def test_an_empty_report_is_refused():
  with pytest.raises(InversionViewError, match="at least one"):
    report.to_report([])


def test_a_report_needs_no_jax():
  code = "import sys, inversionview_jax.show.report; sys.exit(bool({'jax', 'flax'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_index_folds_and_what_is_encoded_stands_beside_the_samples():
  page = report.to_report([real(), real("other")])
  assert page.count("<details open><summary") == page.count("<nav ") == 2  # one for each reader
  for section in re.findall(r"<section.*?</section>", page, re.DOTALL):
    beside, samples = section.split('<div class="iv-sides"><div>')[1].rsplit("</div><div>", 1)
    assert "iv-features" in beside and "iv-samples" in samples and "iv-features" not in samples
