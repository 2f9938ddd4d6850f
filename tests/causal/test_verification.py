"""Verdicts on hypotheses, on the targets that ship."""

import jax
import pytest

import inversionview_jax as iv
from inversionview_jax.causal import verification
from inversionview_jax.cli import main
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError

ONE = parallel.make_mesh(devices=jax.devices()[:1])

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def addition():
  return iv.load_target("addition")


def test_one_head_of_the_shipped_model_carries_the_carry(addition):
  effects = verification.verify(addition, "a0.0", "=", "C2", pairs=64, mesh=ONE)
  assert effects.predict == "A1" and effects.only.share.mean > 0.98 and abs(effects.rest.share.mean) < 0.05
  assert effects.only.answer_differs.mean == 1 and effects.only.effect.n == effects.rest.effect.n == 64
  other = verification.verify(addition, "blocks.0.attn.hook_result.3", "=", "C2", pairs=64, mesh=ONE)
  assert abs(other.only.share.mean) < 0.02 and other.site == "a0.3"


def test_a_feature_that_leaves_the_answer_alone_has_no_share():
  target = iv.load_target("counting")
  effects = iv.verify(target, "x1.mid", ":", "count", pairs=64, mesh=ONE)
  assert (
    effects.only.share.mean == pytest.approx(1, abs=1e-4)
    and effects.rest.share is None
    and effects.rest.answer_differs.mean == 0
  )
  assert "nothing to share out" in str(effects) and "changes the top token in" in str(effects)
  assert effects.to_data()["rest"]["share"] is None and effects.to_data()["only"]["effect"]["n"] == 64


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"feature": "F4"}, "unknown feature of the task addition: 'F4': did you mean F3 or F2 or F1"),
    ({"site": "a7.0"}, "no site 'a7.0'"),
    ({"position": "A9"}, "unknown position 'A9'"),
    ({"predict": "A9"}, "unknown digit 'A9'"),
    ({"where": "F1 > 9"}, "no input of the split 'test' fulfils 'F1 > 9'"),
    ({"where": "F9 > 1"}, "unknown feature in the condition"),
    ({"pairs": 0}, "pairs = 0"),
    ({"split": "validation"}, "unknown split"),
    ({"position": "A2", "predict": "A1"}, "cannot reach the prediction"),
  ],
  ids=str,
)
def test_verify_refuses_what_it_does_not_know(addition, wrong, message):
  call = {"site": "a0.0", "position": "=", "feature": "C2", "pairs": 8}
  with pytest.raises(InversionViewError, match=message):
    iv.verify(addition, **(call | wrong))


def refused(capsys, *argv) -> str:
  capsys.readouterr()
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "Traceback" not in error
  return error


def test_verify_asks_about_a_feature_of_a_language_task(ioi_folder, capsys):
  argv = ["verify", "--task", "ioi", "--site", "x1.post", "--position", "S2", "--feature", "S", "--pairs", "8"]
  assert main([*argv, "--target", str(ioi_folder)]) == 0
  assert "S only" in capsys.readouterr().out
  assert "is about a language model" in refused(capsys, *argv)


def test_a_verdict_shows_both_kinds_of_pairs_and_its_sentence(addition):
  verdict = verification.verify(addition, "a0.0", "=", "C2", pairs=16, mesh=ONE)
  text = repr(verdict)
  assert text.splitlines()[0] == "a0.0 at '=', feature C2, judged by A1"
  assert "C2 only" in text and "everything but C2" in text and str(verdict) in text
  assert " / ".join(verdict.only.example) in text
  assert verdict._repr_html_().count("<tr>") == 1 + len(verdict.rows())
