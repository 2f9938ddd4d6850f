"""Edits that another edit overwrites are refused: what is refused changes nothing, and what is accepted changes something."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import Edit
from inversionview_jax.targets.edits import resolve_edit, resolve_edits
from inversionview_jax.targets.inputs import resolve_inputs

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
  [("a0.1", 4), ("a0.1", 5), ("x0.mid", 4)],  # one of two edits of a head
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


@functools.cache
def program(module):
  return jax.jit(lambda params, tokens, edits: module.apply({"params": params}, tokens, edits=edits).logits)


def logits(target, named):
  """The logits with these edits, overwritten or not. One program for all cases: every site has its edits, which are off (in no layer) or on."""
  every = []
  for site in (*VALUES, "x0.mid", "a0.1"):
    on = (site, next((at for name, at in named if name == site), None))
    named = [one for one in named if one != on]
    edit = resolve_edit(target, Edit(site, on[1] or 0, VALUES[site]), resolve_inputs(target, TEXT))
    every.append(dataclasses.replace(edit, layer=jnp.int32(-1) if on[1] is None else edit.layer))
  assert not named
  return np.asarray(program(target.module)(target.params, target.encode(TEXT), every))


@pytest.mark.parametrize("named", OVERWRITTEN, ids=str)
def test_overwritten_edits_are_refused_and_would_change_nothing(small_target, named):
  with pytest.raises(InversionViewError, match="two edits of which one has no effect") as caught:
    small_target.run(TEXT, edits=edits(*named))
  message = str(caught.value)
  assert "\n" not in message
  lost = message.split("no effect: ")[1].split(" is overwritten")[0]
  if any(at is None for _, at in named):
    return
  gone = next(one for one in named if small_target.site(one[0]).short == lost)
  kept = [one for one in named if one != gone]
  assert len(kept) < len(named)
  np.testing.assert_array_equal(logits(small_target, named), logits(small_target, kept))


@pytest.mark.parametrize("named", EFFECTIVE, ids=str)
def test_edits_that_all_have_an_effect_are_made(small_target, named):
  rows, made = resolve_inputs(small_target, TEXT), edits(*named)
  resolve_edits(small_target, made, rows)
  if any(at is None for _, at in named):
    return
  whole = logits(small_target, named)
  for left_out in named:
    assert np.abs(whole - logits(small_target, [one for one in named if one != left_out])).max() > 1e-4


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
