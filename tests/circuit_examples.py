"""Contents of circuit.json files, made up: a small circuit of addition and a large one of a language model."""

import json
import math
import random

from inversionview_jax import tasks
from inversionview_jax.preimage import Preimage, Query, Sample


def estimate(mean, se=0.01, n=1024):
  return {"mean": mean, "se": se, "n": n}


def encoded(name, rate, base, value=None, verdict="encodes", only=None):
  causal = None if only is None else {"only": estimate(only), "rest": estimate(round(1 - only, 2))}
  return {"property": name, "query_value": value, "rate": rate, "base": base, "control": base, "verdict": verdict} | {
    "causal": causal
  }


def node(site, position, effect, order, encodes=(), bits=3.0, inside=812, text="615+861=1476", file=None, problem=""):
  layer, _, head = site[1:].partition(".")
  is_head = site[0] == "a"
  return {
    "name": f"{site}@{position}",
    "site": site,
    "kind": "head" if is_head else "mlp",
    "layer": int(layer),
    "head": int(head) if is_head else None,
    "position": position,
    "effect": estimate(effect),
    "attribution": round(effect * 0.8, 3),
    "order": order,
    "encodes": list(encodes),
    "bits": None if bits is None else {"mean": bits, "se": 0.2},
    "queries": [{"text": text, "position": 8, "inside": inside, "file": file}],
    "problem": problem,
  }


def edge(source, target, through, effect):
  return {"source": source, "target": target, "through": through, "effect": estimate(effect)}


def curve(total, size, best, names):
  sizes = sorted({*range(0, min(total, 2 * size) + 1), *range(0, total + 1, max(total // 20, 1)), total})
  return [
    {
      "size": k,
      "faithfulness": estimate(1.0 if k == total else 1 - math.exp(-k * math.log(1 / (1 - best)) / size), 0.008),
      "random": estimate((k / total) ** 2.2, 0.03, 40),
      "node": names[k - 1] if 0 < k <= len(names) else "",
    }
    for k in sizes
  ]


def around(nodes, edges, **changes):
  """A circuit.json's content with these nodes and edges."""
  positions = list(dict.fromkeys(n["position"] for n in nodes))
  names = [n["name"] for n in sorted(nodes, key=lambda n: n["order"])]
  table = {
    "format": "inversionview-circuit",
    "format_version": 1,
    "version": "0.2",
    "target": "addition",
    "task": "addition",
    "answer": "A1",
    "example": {"clean": "615+861=1476", "corrupted": "615+261=876"},
    "pairs": 1024,
    "total_nodes": 140,
    "positions": positions,
    "logit_difference": {"clean": estimate(7.1), "corrupted": estimate(-7.0)},
    "faithfulness": estimate(0.976, 0.008),
    "size": len(nodes),
    "nodes": nodes,
    "inputs": [],
    "edges": edges,
    "curve": curve(140, len(nodes), 0.976, names),
    "cpr": 0.97,
    "cmd": 0.04,
    "random_cpr": 0.4,
    "settings": {"pairs": 1024, "seed": 0, "method": "patching"},
    "target_runs": 123456,
  }
  return table | changes


def addition():
  """Eight nodes at two positions, as the paper describes them."""
  nodes = [
    node("a0.0", "=", 0.31, 1, [encoded("F1", 1.0, 0.11, "6", only=0.97), encoded("S1", 0.99, 0.11, "8")], 6.3),
    node("a0.1", "=", 0.29, 2, [encoded("F1", 0.98, 0.11, "6"), encoded("S1", 0.97, 0.11, "8")], 6.1),
    node("a0.2", "=", 0.22, 4, [encoded("F1 + S1", 0.93, 0.1, "14", "partly encodes")], 4.4),
    node("a0.3", "=", 0.18, 5, [encoded("C2", 1.0, 0.46, "0", only=0.99), encoded("F2 + S2 > 9", 0.99, 0.46)], 3.1),
    node("m0", "=", 0.44, 3, [encoded("A1", 0.9, 0.3, "1", "partly encodes"), encoded("C2", 0.95, 0.46, "0")], 5.2),
    node("a1.1", "=", 0.12, 6, [encoded("A1", 1.0, 0.3, "1", only=0.94)], 3.0),
    node("m1", "=", 0.37, 7, [encoded("A1", 1.0, 0.3, "1", only=1.0)], 3.2),
    node("m0", "S1", -0.06, 8, [], None, problem="12 members inside ε, at least 50 are needed"),
  ]
  positions = ["BOS", "F1", "F2", "F3", "+", "S1", "S2", "S3", "=", "A1"]
  inputs = [{"name": f"embed@{p}", "position": p} for p in ("F1", "F2", "S1", "S2", "=")]
  edges = [
    *(edge(f"embed@{p}", f"a0.{h}@=", "v", 0.12 - 0.02 * h) for p in ("F1", "S1") for h in range(3)),
    *(edge(f"embed@{p}", "a0.3@=", "v", 0.08) for p in ("F2", "S2")),
    edge("embed@=", "a0.0@=", "q", 0.03),
    edge("embed@S1", "m0@S1", "in", 0.04),
    edge("m0@S1", "a1.1@=", "k", -0.05),
    *(edge(f"a0.{h}@=", "m0@=", "in", 0.2 - 0.03 * h) for h in range(4)),
    edge("a0.0@=", "m1@=", "in", 0.07),
    edge("a0.3@=", "logits", "out", 0.06),
    edge("m0@=", "a1.1@=", "v", 0.05),
    edge("m0@=", "m1@=", "in", 0.25),
    edge("m0@=", "logits", "out", 0.21),
    edge("a1.1@=", "logits", "out", 0.1),
    edge("m1@=", "logits", "out", 0.36),
  ]
  return around(nodes, edges, positions=positions, inputs=inputs)


def large(seed=0):
  """Sixty nodes at eight positions in 30 layers."""
  draw = random.Random(seed)
  positions = ["BOS", "IO", "IO+1", "S1", "S1+1", "S2", "END-1", "END"]
  places = set()
  while len(places) < 60:
    layer = draw.choice([k for k in range(30) if k % 7 != 3])
    site = f"a{layer}.{draw.randrange(9)}" if draw.random() < 0.7 else f"m{layer}"
    places.add((site, draw.choice([*positions[1:], "END", "END", "S2", "S2"])))
  nodes = []
  for k, (site, position) in enumerate(sorted(places)):
    said = [
      encoded("token(S2) == token(S1)", 0.97, 0.5, None, only=0.8),
      encoded("name of the indirect object", 0.88, 0.02, "Mary", "partly encodes"),
    ][: draw.randrange(3)]
    text = "Then, Mary and John went to the store. John gave a drink to"
    nodes.append(node(site, position, draw.gauss(0.02, 0.06), k + 1, said, text=text))
  inputs = [{"name": f"embed@{p}", "position": p} for p in positions[1:]]
  edges, order = [], sorted(nodes, key=lambda n: (n["layer"], n["kind"] == "mlp"))
  at = {p: k for k, p in enumerate(positions)}
  for k, target in enumerate(order):
    earlier = [s for s in order[:k] if s["layer"] < target["layer"] and at[s["position"]] <= at[target["position"]]]
    for source in draw.sample(earlier, min(len(earlier), 3)):
      through = draw.choice("qkv") if target["kind"] == "head" else "in"
      if through in "kv" or source["position"] == target["position"]:
        edges.append(edge(source["name"], target["name"], through, draw.gauss(0.01, 0.03)))
    if draw.random() < 0.2:
      edges.append(edge(f"embed@{target['position']}", target["name"], "in" if target["kind"] == "mlp" else "v", 0.02))
  edges += [edge(n["name"], "logits", "out", draw.gauss(0.03, 0.05)) for n in order if n["position"] == "END"]
  names = [n["name"] for n in nodes]
  return around(
    nodes, edges, target="HuggingFaceTB/SmolLM2-135M", task="ioi", answer="IO", positions=positions, inputs=inputs,
    total_nodes=2400, faithfulness=estimate(0.72, 0.02), curve=curve(2400, 60, 0.72, names), cpr=0.91, cmd=0.09,
  )  # fmt: skip


def preimage(samples=60):
  """The content of a preimage's JSON: of a0.0 at "=", inputs of addition with the query's first digit."""
  task, draw, drawn = tasks.get("addition"), random.Random(0), []
  for _ in range(samples):
    first, second = draw.randrange(600, 700), draw.randrange(100, 900)
    text = f"{first}+{second}={first + second}"
    ids = [int(t) for t in task.tokenizer.encode_batch([text], task.length)[0] if t != task.tokenizer.pad_id][1:]
    effect = [draw.uniform(-1, 1) for _ in ids]
    drawn.append(Sample(ids, task.tokenizer.strings(ids), text, draw.lognormvariate(-2.5, 1.2), 8, effect))
  ids = task.tokenizer.encode_batch(["615+861=1476"], task.length, eos=True)[0].tolist()
  query = Query("615+861=1476", ids, task.tokenizer.strings(ids), 8, "=", "a0.0", "blocks.0.attn", [1.0, 2.0])
  p = Preimage(query, drawn, 0.1, "euclidean", "anywhere", 0, "addition", "addition", "centered", "1")
  return json.loads(p.to_json())
