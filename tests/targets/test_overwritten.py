"""Edits that another edit overwrites are refused: what is refused changes nothing, and what is accepted changes something."""

import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import Edit

TEXT = ["615+861="]
LAST = 8
VALUES = {site: np.random.default_rng(i).normal(size=16) for i, site in enumerate(
  ["embed", "pos_embed", "x0.pre", "a0.0", "a0.1", "x0.mid", "m0", "x0.post", "x1.pre", "a1.0", "a1.1", "x1.mid", "m1", "x1.post"]
)}  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def edits(*named):
  return [Edit(site, position, VALUES[site]) for site, position in named]


OVERWRITTEN = [
  [("a0.1", 4), ("x0.mid", 4)],
  [("m0", 4), ("x0.post", 4)],
  [("m0", 4), ("x1.pre", 4)],
  [("embed", 4), ("x0.pre", 4)],
  [("pos_embed", None), ("x0.pre", None)],
  [("x0.mid", 4), ("x0.post", 4)],
  [("x0.post", 4), ("x0.mid", 4)],  # in any order
  [("a0.0", 4), ("x0.post", 4)],  # by way of x0.mid
  [("a0.0", 4), ("x1.pre", 4)],
  [("m1", -1), ("x1.post", -1)],
  [("x0.pre", LAST), ("x0.mid", LAST)],  # nothing follows that could attend to it
  [("embed", -1), ("x1.post", -1)],
  [("embed", None), ("x1.mid", None)],
  [("a1.1", 4), ("m0", 4), ("x1.post", 4)],
  [("x0.pre", 7), ("x0.mid", 7), ("x0.mid", LAST)],
]
EFFECTIVE = [
  [("a0.1", 4), ("x0.mid", 5)],
  [("x0.pre", 4), ("x0.mid", 4)],  # later positions attend to it
  [("x0.mid", 4), ("m0", 4)],  # beside the MLP runs the residual stream
  [("embed", 4), ("pos_embed", 4)],
  [("a0.0", 4), ("a0.1", 4), ("m0", 4)],
  [("x0.post", 4), ("a1.0", 4), ("a1.1", 4)],
  [("a0.1", None), ("x0.mid", 4)],
  [("embed", 4), ("x0.mid", 4), ("x1.mid", 4)],
  [("x0.post", LAST), ("a1.0", LAST)],
]


@pytest.mark.parametrize("named", OVERWRITTEN, ids=str)
def test_overwritten_edits_are_refused_and_would_change_nothing(small_target, named):
  made = edits(*named)
  with pytest.raises(InversionViewError, match="two edits of which one has no effect") as caught:
    small_target.run(TEXT, edits=made)
  message = str(caught.value)
  assert "\n" not in message
  # The one that is named changes nothing where it is made before the others, by hand.
  site = message.split("no effect: ")[1].split(" is overwritten")[0]
  lost = next(e for e in made if small_target.site(e.site).short == site)
  with_it, without = (
    small_target.module.apply(
      {"params": small_target.params}, small_target.encode(TEXT), edits=_resolved(small_target, chosen), exact=True
    ).logits
    for chosen in (made, [e for e in made if e is not lost])
  )
  if [s for s, _ in named] != ["x0.post", "x0.mid"]:  # in the order of the list
    np.testing.assert_array_equal(with_it, without)


def _resolved(target, made):
  from inversionview_jax.targets.edits import resolve_edit
  from inversionview_jax.targets.inputs import resolve_inputs

  return [resolve_edit(target, edit, resolve_inputs(target, TEXT)) for edit in made]


@pytest.mark.parametrize("named", EFFECTIVE, ids=str)
def test_edits_that_all_have_an_effect_are_made(small_target, named):
  made = edits(*named)
  whole = np.asarray(small_target.run(TEXT, edits=made).logits)
  for left_out in made:
    rest = small_target.run(TEXT, edits=[e for e in made if e is not left_out]).logits
    assert np.abs(whole - np.asarray(rest)).max() > 1e-4


def test_padding_behind_a_text_is_no_place_to_have_an_effect(small_target):
  texts, at = ["615+861=", "1+2="], np.array([7, 4])
  with pytest.raises(InversionViewError, match="x0.pre is overwritten by x0.mid"):
    small_target.run(texts, edits=[Edit("x0.pre", at, VALUES["x0.pre"]), Edit("x0.mid", at, VALUES["x0.mid"])])
  small_target.run(texts, edits=[Edit("x0.pre", 1, VALUES["x0.pre"]), Edit("x0.mid", 1, VALUES["x0.mid"])])


# Patches and ablations.


CLEAN, CORRUPTED = ["615+261=", "302+140="], ["615+291=", "372+140="]


@pytest.mark.parametrize("order", ["together", "forward", "backward"])
def test_overwritten_patches_are_refused_in_steps_that_make_both(small_target, order):
  for sites in (["a0.1", "x0.mid"], ["m0", "x0.post"], ["embed", "x0.pre"], ["x0.mid", "x0.post"]):
    for call in (
      lambda sites=sites: iv.patch(small_target, CLEAN, CORRUPTED, sites, 1, "kl", order=order),
      lambda sites=sites: iv.ablate(small_target, CLEAN, sites, 1, "zero", order=order),
    ):
      with pytest.raises(
        InversionViewError, match=f"two patches of which one has no effect: {sites[0]}@1 is overwritten by {sites[1]}@1"
      ):
        call()


def test_each_patch_by_itself_may_be_overwritten_by_another_of_the_list(small_target):
  effects = iv.patch(small_target, CLEAN, CORRUPTED, ["a0.1", "x0.mid"], "=", "kl", order="each")
  assert (effects.values > 0).all() and effects.steps == ("a0.1@=", "x0.mid@=")


def test_a_patch_that_matters_to_later_predictions_only_is_overwritten_where_an_earlier_one_is_read(small_target):
  how = {"order": "backward", "answers": ("3", "7")}
  clean, corrupted = ["615+261=876", "302+140=442"], ["615+291=906", "372+140=512"]
  iv.patch(small_target, clean, corrupted, ["x0.pre", "x0.mid"], "=", read_position="A2", **how)
  with pytest.raises(InversionViewError, match="x0.pre@= is overwritten by x0.mid@="):
    iv.patch(small_target, clean, corrupted, ["x0.pre", "x0.mid"], "=", read_position="=", **how)
