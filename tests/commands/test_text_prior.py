"""`view --prior model`: a language model's own texts on the command line, and the flags that do not go with it."""

import pytest
from small_models import gpt2_folder

from inversionview_jax.preimage import Preimage

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXT = "Mary went to the store"


def test_view_on_the_command_line(inversionview, refused, tmp_path):
  folder = gpt2_folder(tmp_path / "tiny-gpt2", context=24)
  argv = ("view", TEXT, "--target", folder, "--site", "a1.0", "--position", "END", "--epsilon", "0.4")
  few = ("--growth", 1, "--particles", 16, "--budget", 160)
  code, out, error = inversionview(*argv, "--prior", "model", *few, "--json", "p.json")
  assert (code, error) == (0, "") and "from the query" in out
  assert Preimage.from_json(tmp_path / "p.json").method == "query+monte_carlo"
  assert "--growth belongs to --prior model" in refused(*argv, "--task", "text", "--growth", "1")
  assert "give it with --target" in refused("view", TEXT, "--site", "m0", "--position", "END", "--prior", "model")
  with_reader = (*argv, "--prior", "model", "--reader", "W")
  assert "--start prior and --reader do not go together" in refused(*with_reader, "--start", "prior")
  assert "use --method decoder+monte_carlo" in refused(*with_reader, "--method", "monte_carlo")
  assert "no reader 'W'" in refused(*with_reader)
  assert "not both" in refused(*argv, "--prior", "model", "--task", "ioi")
  assert "use --method monte_carlo" in refused(*argv, "--prior", "model", "--method", "exact")
  assert "--noise has no effect" in refused(*argv, "--prior", "model", "--noise", "0.1")
