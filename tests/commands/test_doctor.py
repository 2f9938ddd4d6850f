"""`inversionview doctor`: what an installation has, and its exit code."""

import configparser
import importlib.metadata
import json
import pathlib

import jax

from inversionview_jax.commands import doctor

ROOT = pathlib.Path(__file__).parents[2]


def examined(inversionview, tmp_path, *argv):
  code, out, _ = inversionview("doctor", "--json", "d.json", *argv)
  return code, out, json.loads((tmp_path / "d.json").read_text())


def test_doctor_finds_versions_devices_caches_and_extras(inversionview, tmp_path):
  code, out, found = examined(inversionview, tmp_path)
  assert (code, found["broken"]) == (0, []) and out.rstrip().endswith("all that every command needs is here")
  versions = {package["name"]: package for package in found["packages"]}
  assert versions["jax"]["version"] == jax.__version__ and versions["jax"]["fits"]
  assert sum(found["devices"]["kinds"].values()) == jax.device_count()
  assert found["model"]["right"] and "addition" in found["package"]["configs"]
  assert all(cache["writable"] for cache in found["caches"])
  for extra in found["extras"]:
    assert any(line.split()[:1] == [extra["name"]] and extra["unlocks"] in line for line in out.splitlines())


def test_every_extra_for_users_is_described():
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  assert set(parser["options.extras_require"]) == {*doctor.EXTRAS, "test", "lint"}


def test_a_missing_extra_is_no_fault_and_a_missing_package_is(inversionview, tmp_path, monkeypatch):
  version = importlib.metadata.version

  def without(*names):
    def of(name):
      if name in names:
        raise importlib.metadata.PackageNotFoundError(name)
      return "0.0.1" if name == "optax" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", of)

  without("streamlit")
  code, out, found = examined(inversionview, tmp_path, "--no-model")
  (explore,) = [extra for extra in found["extras"] if extra["name"] == "explore"]
  assert code == 0 and explore["missing"] == ["streamlit"] and "lacks streamlit" in out
  assert "not tested with this version" in next(line for line in out.splitlines() if line.split()[:1] == ["optax"])
  without("optax")
  code, out, found = examined(inversionview, tmp_path, "--no-model")
  assert (
    code == 1
    and found["broken"] == ["optax is not installed: pip install 'optax>=0.2.8,<0.3'"]
    or "optax" in found["broken"][0]
  )


def test_a_model_that_answers_wrong_and_a_broken_jax_are_faults(inversionview, tmp_path, monkeypatch):
  monkeypatch.setattr(doctor, "_ANSWER", "2")
  code, out, _ = examined(inversionview, tmp_path)
  assert code == 1 and "BROKEN: the shipped addition model" in out
  monkeypatch.setattr(jax, "devices", lambda: (_ for _ in ()).throw(RuntimeError("no driver")))
  code, out, found = examined(inversionview, tmp_path)
  assert code == 1 and "no driver" in out and found["model"] == {"ran": False}


def test_requirements_of_an_installed_package_are_those_of_setup_cfg(monkeypatch):
  """In a wheel there is no setup.cfg: the metadata have them."""
  needed, extras = doctor._requirements()
  monkeypatch.setattr(doctor.pathlib.Path, "is_file", lambda self: False)
  lines = [str(r) for r in needed] + [f"{r} ; extra == '{name}'" for name, rs in extras.items() for r in rs]
  monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
  installed_needed, installed_extras = doctor._requirements()
  assert [r.name for r in installed_needed] == [r.name for r in needed]
  assert {n: [r.name for r in rs] for n, rs in installed_extras.items()} == {
    n: [r.name for r in rs] for n, rs in extras.items() if n in doctor.EXTRAS
  }
