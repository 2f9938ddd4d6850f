"""The launchers: sweeps, the commands they print (parsed by the real flag parser), what they do after a preemption, and a sweep that runs."""

import configparser
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
import yaml

from inversionview_jax import cli
from inversionview_jax.commands import configs
from inversionview_jax.devices import chips, hosts
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preemption import EXIT_AGAIN

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
TINY = f"{ROOT / 'configs' / 'addition.py'}:tiny"
sys.path.insert(0, str(LAUNCH))  # as for a script in that folder

import gke
import hyper
import units

ONE = ("train", "--config=configs/addition.py:tiny", "--workdir=/shared/a b", "--config.sites=('a0.0', 'm1')")


def parse(arguments):
  """(parsed arguments, config) of a command of inversionview, by the parser that runs it."""
  args, rest = cli._parser().parse_known_args(list(arguments))
  return args, configs.load_config(args.config, rest)


def launch(*command, folder=ROOT, **environment):
  """Runs a launcher: (exit code, stdout, stderr)."""
  done = subprocess.run(
    list(map(str, command)),
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    capture_output=True,
    text=True,
    timeout=600,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def programs(tmp_path):
  """A function (name, shell script) that puts a stand-in first on the PATH; `calls()` lists the command lines it got."""
  log = tmp_path / "calls"

  def make(name, body="exit 0"):
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / name
    path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >> {log}\n{body}\n')
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"

  make.calls = lambda: log.read_text().splitlines() if log.exists() else []
  return make


# Sweeps.


def test_hyper_combines_sweeps():
  a, b = hyper.sweep("config.a", (1, 2)), hyper.sweep("config.b", "x,y".split(","))
  assert a == [{"config.a": 1}, {"config.a": 2}]
  assert hyper.product([a, b]) == [{"config.a": i, "config.b": j} for i in (1, 2) for j in ("x", "y")]
  assert hyper.zipit([a, b]) == [{"config.a": 1, "config.b": "x"}, {"config.a": 2, "config.b": "y"}]
  assert hyper.chainit([a, hyper.zipit([a, b])]) == a + hyper.zipit([a, b])
  assert hyper.product([]) == [{}]


@pytest.mark.parametrize(
  ("make", "named"),
  [
    (lambda: hyper.sweep("seed", (1,)), "config.seed"),
    (lambda: hyper.sweep("config.name", "adamw"), "one string"),
    (lambda: hyper.zipit([hyper.sweep("config.a", (1,)), hyper.sweep("config.b", (1, 2))]), "1, 2"),
    (lambda: hyper.product([hyper.sweep("config.a", (1,)), hyper.sweep("config.a", (2,))]), "config.a"),
  ],
)
def test_hyper_refuses(make, named):
  with pytest.raises(ValueError, match=re.escape(named)):
    make()


@pytest.mark.parametrize("name", [p.name for p in (ROOT / "configs").glob("*.py") if "def get_hyper" in p.read_text()])
def test_sweep_of_every_config_is_parsed(name):
  config = str(ROOT / "configs" / name)
  if not hasattr(configs.load_config(config, []), "data"):
    pytest.skip("not trained from")
  made = units.work_units(config, "train", "W/{xid}/{wid}", ["--config.steps=7"], "5")
  assert [unit.workdir for unit in made] == [f"W/5/{i + 1}" for i in range(len(made))]
  for unit in made:
    args, config = parse(unit.arguments)
    assert (args.workdir, config.steps) == (unit.workdir, 7)
    for key, value in unit.hyper.items():
      for part in key.split(".")[1:]:
        config = config[part]
      assert config == value
      _, config = parse(unit.arguments)


def test_values_of_every_type_survive_the_command_line(tmp_path):
  (tmp_path / "typed.py").write_text(
    textwrap.dedent("""
      from ml_collections import ConfigDict
      def get_config():
        return ConfigDict({"flag": True, "rate": 0.5, "count": 3, "name": "x", "sites": ("a0.0",)})
      def get_hyper(hyper):
        return hyper.zipit([
          hyper.sweep("config.flag", [False, True]), hyper.sweep("config.rate", [1e-7, 2.0]), hyper.sweep("config.count", [0, -1]),
          hyper.sweep("config.name", ["", "a b=c'"]), hyper.sweep("config.sites", [(), ("a0.0", "m1")])])
    """)
  )
  made = units.work_units(str(tmp_path / "typed.py"), "train", "W{wid}", [], "1")
  assert dict(parse(made[0].arguments)[1]) == {"flag": False, "rate": 1e-7, "count": 0, "name": "", "sites": ()}
  assert parse(made[1].arguments)[1].name == "a b=c'"
  assert parse(made[1].arguments)[1].sites == ("a0.0", "m1")


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"workdir": "W/{xid}"}, "{wid}"),
    ({"workdir": "W/{wid}/{user}"}, "{user}"),
    ({"workdir": "gs://bucket/{wid}"}, "mount"),
    ({"overrides": ["--config.seed=3"]}, "--config.seed"),
    ({"overrides": ["--config.sead=3"]}, "seed"),
    ({"only": "8-10"}, "1-9"),
    ({"only": "two"}, "'two'"),
    ({"command": "tain"}, "train"),
    ({"config": "configs/none.py"}, "configs/none.py"),
  ],
)
def test_work_units_refuse(changes, named):
  settings = {"config": TINY, "command": "train", "workdir": "W/{wid}", "overrides": [], "xid": "1"} | changes
  with pytest.raises(InversionViewError) as error:
    units.work_units(**settings)
  assert named in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_over_an_unknown_key_is_refused(tmp_path):
  (tmp_path / "c.py").write_text(
    "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'seed': 0})\n"
    "def get_hyper(hyper):\n  return hyper.sweep('config.sed', (1, 2))\n"
  )
  with pytest.raises(InversionViewError, match="seed"):
    units.work_units(str(tmp_path / "c.py"), "train", "W/{wid}", [], "1")


# The commands that are printed.


def printed(*options):
  code, out, error = launch(
    sys.executable, LAUNCH / "xm_launch.py", f"--config={TINY}", "--workdir=W/{xid}/{wid}", "--dry_run", *options
  )
  assert (code, error) == (0, "")
  return [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]


def test_printed_commands_are_parsed():
  lines = printed("--only=2,9", "--config.sites=('a0.0', 'm1')", "--xid=77")
  assert len(lines) == 2
  for line, wid, seed in zip(lines, (2, 9), (1, 2), strict=True):
    args, config = parse(line[line.index("inversionview_jax.cli") + 1 :])
    assert (args.command, args.workdir, config.seed, config.sites) == ("train", f"W/77/{wid}", seed, ("a0.0", "m1"))
    assert config.data.config == "tiny"


def test_nosweep_is_the_config_itself():
  (line,) = printed("--nosweep", "--command=train-target", "--platform=processes")
  args, config = parse(line[line.index("inversionview_jax.cli") + 1 :])
  assert args.command == "train-target" and config.to_json() == configs.load_config(TINY, []).to_json()


def test_printed_commands_of_other_platforms(programs):
  """xm_launch prints the command of a platform's launcher, and that launcher prints a command of inversionview."""
  (line,) = printed("--only=1", "--platform=slurm", "--xid=8", "--", "--nodes=2")
  assert line[:3] == ["sbatch", "--job-name=iv-8-1", "--nodes=2"] and pathlib.Path(line[3]).exists()
  code, out, error = launch("bash", line[3], "--dry_run", *line[4:])
  assert (code, error) == (0, "")
  run = shlex.split(out)
  assert run[:2] == ["srun", "--kill-on-bad-exit=0"] and parse(run[3:])[0].workdir == "W/8/1"

  code, out, _ = launch(
    sys.executable,
    LAUNCH / "xm_launch.py",
    f"--config={TINY}",
    "--workdir=/shared/{xid}/{wid}",
    "--dry_run",
    "--only=3",
    "--xid=8",
    "--platform=tpu_vm",
    "--",
    "--zone=z",
    "--type=v6e-64",
    "--nfs=h:/s",
  )
  line = shlex.split(out.splitlines()[1])
  code, out, error = launch(*line[: line.index("--")], "--dry_run", *line[line.index("--") :])
  assert (code, error) == (0, "")
  create, _, scp, install, run, delete = map(shlex.split, out.splitlines())
  assert create[5:] == ["iv-8-3", "--zone=z", "--accelerator-type=v6e-64", "--version=v2-alpha-tpuv6e"]
  assert delete[4:] == ["delete", "iv-8-3", "--zone=z", "--quiet"]
  remote = run[-1].removeprefix("--command=").partition(".venv/bin/inversionview ")[2]
  assert parse(shlex.split(remote))[0].workdir == "/shared/8/3"
  assert install[-1].endswith("'.[tpu]'") and "h:/s /shared" in install[-1]


def readme_commands(program):
  blocks = re.findall(r"^```bash\n(.*?)^```", (LAUNCH / "README.md").read_text(), re.MULTILINE | re.DOTALL)
  return [
    shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.startswith(program)
  ]


@pytest.mark.parametrize("command", readme_commands("python launch/xm_launch.py"), ids=lambda c: " ".join(c[4:]))
def test_launches_of_the_readme_are_parsed(command):
  cut = command.index("--") if "--" in command else len(command)
  code, out, error = launch(sys.executable, *command[1:cut], "--dry_run", *command[cut:])
  assert (code, error) == (0, "")
  for line in out.splitlines():
    if not line.startswith("#"):
      line = shlex.split(line)
      args, config = parse(line[next(i for i, word in enumerate(line) if word in units.COMMANDS) :])
      assert args.workdir and config.task == "addition"


@pytest.mark.parametrize("command", readme_commands("inversionview plan"), ids=" ".join)
def test_plans_of_the_readme_are_parsed(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, config = parse(command[1:])
  assert all(map(chips.topology, args.topology)) and config.steps


def test_printed_jobset_is_parsed():
  code, out, error = launch(
    sys.executable,
    LAUNCH / "gke.py",
    "--name=iv-1",
    "--image=registry/iv:1",
    "--topology=v5e:16x16",
    "--claim=disk",
    "--dry_run",
    "--",
    *ONE,
  )
  assert (code, error) == (0, "")
  made = yaml.safe_load(out)
  (job,) = made["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  count, each = job["template"]["spec"]["parallelism"], container["resources"]["limits"]["google.com/tpu"]
  assert count * each == 256 and count == job["template"]["spec"]["completions"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "16x16",
  }
  assert tuple(container["args"]) == ONE
  args, config = parse(container["args"])
  assert (args.workdir, config.sites) == ("/shared/a b", ("a0.0", "m1"))
  (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"topology": "v5e:16"}, "v5e:16x16"),
    ({"topology": "v9:2x2"}, "v5e"),
    ({"topology": "cpu:8"}, "TPU"),
    ({"gpus": "h100:8"}, "one of them"),
    ({"topology": ""}, "--gpus=h100:8"),
    ({"topology": "", "gpus": "h1000:8"}, "h100"),
    ({"topology": "", "gpus": "h100"}, "h100:8"),
    ({"topology": "", "gpus": "h100:8", "nodes": 0}, "--nodes=0"),
    ({"nodes": 2}, "--nodes=2"),
    ({"bucket": "b"}, "one of them"),
    ({"claim": ""}, "--bucket=B"),
    ({"name": "Big_Run"}, "Big_Run"),
    ({"arguments": []}, "command"),
    ({"arguments": ["train", "--workdir=runs/1"]}, "/shared/"),
  ],
)
def test_jobset_refuses(changes, named):
  settings = {"name": "a", "image": "i", "topology": "v5e:2x4", "claim": "c", "arguments": list(ONE)} | changes
  with pytest.raises(InversionViewError, match=re.escape(named)):
    gke.render(**settings)


@pytest.mark.parametrize(
  "command",
  [
    ["xm_launch.py", f"--config={TINY}", "--workdir=W/{wid}", "--platform=slrm"],
    ["xm_launch.py", f"--config={TINY}", "--workdir=W/{wid}", "--plattform=slurm"],
    ["xm_launch.py", f"--config={TINY}", "--workdir=W/{wid}", "--parallel=0"],
    ["xm_launch.py", "--workdir=W/{wid}"],
    ["gke.py", "--name=a", "--image=i", "--topology=v5e:3x3", "--claim=c", "--", *ONE],
    ["gke.py", "--name=a", "--image=i", "--gpus=h100:8", "--", *ONE],
    ["tpu_vm.sh", "copy", "--name=a", "--zone=z"],
    ["tpu_vm.sh", "copy", "--name=a", "--zone=z", "--nfs=h:/s", "--bucket=b"],
    ["tpu_vm.sh", "copy", "--name=a", "--zone=z", "--nfs=h:/s", "--extras=a;rm"],
    ["tpu_vm.sh", "fly"],
    ["tpu_vm.sh", "all", "--name=a", "--zone=z", "--type=v6e-8", "--nfs=h:/s", "--", "train", "--workdir=runs/1"],
    ["tpu_vm.sh", "run", "--name=a", "--zone=z"],
    ["tpu_vm.sh", "create", "--name=a", "--zone=z"],
    ["slurm.sbatch"],
    ["again.sh", "--times", "many", "true"],
  ],
)
def test_launchers_refuse_in_one_line(command, programs, tmp_path):
  for name in ("sbatch", "srun", "gcloud", "kubectl"):
    path = programs(name)
  runner = sys.executable if command[0].endswith(".py") else "bash"
  code, out, error = launch(runner, LAUNCH / command[0], *command[1:], folder=tmp_path, PATH=path)
  assert (code, out, error.count("\n"), programs.calls()) == (2, "", 1, [])


@pytest.mark.parametrize(("gpus", "nodes"), [("h100:8", 2), ("l4:1", 1)])
def test_printed_jobset_for_gpus_is_parsed(gpus, nodes):
  options = [f"--gpus={gpus}", f"--nodes={nodes}", "--bucket=gs://runs", "--account=trainer"]
  code, out, error = launch(
    sys.executable, LAUNCH / "gke.py", "--name=iv-1", "--image=registry/iv:cuda", *options, "--dry_run", "--", *ONE
  )
  assert (code, error) == (0, "")
  (job,) = yaml.safe_load(out)["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (nodes, nodes, "Indexed")
  assert container["resources"]["limits"] == container["resources"]["requests"] == {"nvidia.com/gpu": int(gpus[-1])}
  (label,) = pod["nodeSelector"].values()
  assert label == gke.GPUS[gpus[:-2]]
  # What each pod starts with is what connects the hosts.
  environment = {variable["name"]: variable["value"] for variable in container["env"]}
  connected = [hosts.initialize_arguments(environment | {"JOB_COMPLETION_INDEX": str(i)}) for i in range(nodes)]
  if nodes == 1:
    assert connected == [None]
  else:
    assert [found["process_id"] for found in connected] == [0, 1]
    assert {found["coordinator_address"] for found in connected} == {"iv-1-slice-0-0.iv-1:8476"}
  # The bucket, and who may write to it.
  volumes = {volume["name"]: volume for volume in pod["volumes"]}
  mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert set(volumes) == set(mounted) and mounted["shared"] == "/shared" and mounted["memory"] == "/dev/shm"
  assert volumes["shared"]["csi"]["volumeAttributes"]["bucketName"] == "runs" and pod["serviceAccountName"] == "trainer"
  assert spec["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  assert tuple(container["args"]) == ONE


# Installing elsewhere.


@pytest.mark.parametrize(
  ("command", "extras"),
  [
    (["--config=addition:tiny"], "tpu"),
    (["--config", "configs/counting.py"], "tpu"),
    (["--config=ioi_smollm2", "--target=/shared/M.gguf"], "tpu,gguf,hf"),
    (["--config", "configs/text.py:tiny", "--config.inputs.files=/shared/a.parquet"], "tpu,hf,datasets"),
    (["--config=factual", "--target", "/shared/gpt2-xl", "--config.log=wandb"], "tpu,hf,wandb"),
    (["--config=mine.py", "--target=tracr:hist"], "tpu,tracr"),
  ],
)
def test_tpu_vm_installs_the_extras_that_the_command_needs(command, extras):
  options = ["--name=a", "--zone=z", "--type=v6e-8", "--nfs=h:/s", "--dry_run"]
  line = ["train", *command, "--workdir=/shared/W"]
  for more in ([], ["--extras=plots"]):
    code, out, error = launch("bash", LAUNCH / "tpu_vm.sh", "all", *options, *more, "--", *line)
    assert (code, error) == (0, "")
    (installed,) = re.findall(r"pip install --quiet '\.\[(.*?)\]'", shlex.split(out.splitlines()[3])[-1])
    assert installed == extras + (",plots" if more else "")
    known = configparser.ConfigParser()
    known.read(ROOT / "setup.cfg")
    assert set(installed.split(",")) <= set(known["options.extras_require"])


REMOTE = {
  "sudo": 'while [ "${1:-}" = -H ]; do shift; done; [ "$1" = mkdir ] && exit 0; [ "$1" = tee ] && { cat > /dev/null; exit 0; }; exit 0',
  "mountpoint": "exit 1", "gcsfuse": "exit 0", "curl": "echo key", "lsb_release": "echo jammy", "tar": "exit 0",
}  # fmt: skip


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_what_tpu_vm_runs_on_a_slice_finds_a_python_that_is_new_enough(version, programs, tmp_path):
  """The printed remote command, run here with stand-ins for the programs of the slice."""
  code, out, _ = launch("bash", LAUNCH / "tpu_vm.sh", "copy", "--name=a", "--zone=z", "--bucket=runs", "--dry_run")
  remote = shlex.split(out.splitlines()[2])[-1].removeprefix("--command=")
  for name, body in REMOTE.items():
    path = programs(name, body)
  old = "exit 1" if version == "3.10" else "exit 0"
  make = 'mkdir -p "${@: -1}/bin"; printf "#!/bin/bash\\nexit 0\\n" > "${@: -1}/bin/pip"; chmod +x "${@: -1}/bin/pip"'
  programs("python3", f'case "$*" in *version_info*) {old} ;; *venv*) {make} ;; esac')
  home = tmp_path / "home"
  home.mkdir()
  code, _, error = launch("bash", "-c", remote, folder=home, PATH=path)
  calls = [call for call in programs.calls() if call.startswith("python3") and "version_info" not in call]
  assert (code, error) == (0, "") and (home / "inversionview_jax" / ".venv" / "bin" / "pip").exists()
  new = ["python3 -m venv .venv"]
  assert calls == (
    new
    if version == "3.12"
    else ["python3 -m pip install --quiet --user uv", "python3 -m uv venv --quiet --seed --python 3.12 .venv"]
  )
  assert any(call.startswith("gcsfuse") and call.endswith("runs /shared") for call in programs.calls())


def test_the_image_is_built_from_files_that_are_there_without_root():
  lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
  sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
  ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
  for source in sources:
    assert (ROOT / source).exists() and f"!{source}" in ignored
  order = [
    next(i for i, line in enumerate(lines) if line.startswith(start))
    for start in ("COPY setup.cfg", "RUN python req", "COPY inversion", "RUN pip install", "USER", "ENTRYPOINT")
  ]
  assert order == sorted(order)  # the libraries are a layer below the package
  assert next(line for line in lines if line.startswith("USER")) != "USER root"


def test_requirements_of_the_image_are_those_of_setup_cfg():
  known = configparser.ConfigParser()
  known.read(ROOT / "setup.cfg")
  own = [line for line in known["options"]["install_requires"].split("\n") if line and not line.startswith("#")]
  _, plain, _ = launch(sys.executable, LAUNCH / "requirements.py", ROOT / "setup.cfg", "")
  assert plain.splitlines() == own
  _, more, _ = launch(sys.executable, LAUNCH / "requirements.py", ROOT / "setup.cfg", "cuda,wandb")
  assert more.splitlines() == [*own, "jax[cuda13]", *known["options.extras_require"]["wandb"].split()]
  code, out, error = launch(sys.executable, LAUNCH / "requirements.py", ROOT / "setup.cfg", "cudda")
  assert code == 1 and out == "" and "cudda" in error and "cuda" in error


# Preemption.


def test_launchers_know_the_exit_code_of_a_preempted_run():
  assert EXIT_AGAIN == 75
  for name in ("again.sh", "tpu_vm.sh", "slurm.sbatch"):
    assert "= 75 ]" in (LAUNCH / name).read_text()


def test_again_starts_again_until_it_is_done(tmp_path):
  count = tmp_path / "count"
  body = f'echo run >> {count}; [ "$(wc -l < {count})" -ge 3 ] && exit 5; exit 75'
  assert launch("bash", LAUNCH / "again.sh", "bash", "-c", body)[0] == 5
  assert count.read_text().count("run") == 3
  code, _, error = launch("bash", LAUNCH / "again.sh", "--times", "1", "bash", "-c", "exit 75")
  assert code == 75 and "giving up" in error


def test_again_prints_its_command(tmp_path):
  code, out, error = launch("bash", LAUNCH / "again.sh", "--dry_run", "--times", "3", "--", "touch", f"{tmp_path}/a b")
  assert (code, error) == (0, "") and shlex.split(out) == ["touch", f"{tmp_path}/a b"] and not list(tmp_path.iterdir())


def test_again_passes_a_signal_on_and_does_not_start_again(tmp_path):
  body = f'trap "sleep 0.3; echo saved >> {tmp_path}/log; exit 75" TERM; echo began >> {tmp_path}/log; while :; do sleep 0.05; done'
  process = subprocess.Popen(["bash", str(LAUNCH / "again.sh"), "bash", "-c", body])
  try:
    for _ in range(600):
      if (tmp_path / "log").exists():
        break
      subprocess.run(["sleep", "0.05"], check=True)
    process.terminate()
    assert process.wait(60) == 75
  finally:
    process.kill()
  assert (tmp_path / "log").read_text().split() == ["began", "saved"]


GCLOUD = """
case "$*" in
  *" describe "*) cat {state} 2>/dev/null || exit 1 ;;
  *" create "*) echo READY > {state} ;;
  *" delete "*) rm -f {state} ;;
  *" ssh "*"inversionview train"*)
    echo x >> {runs}
    case "$(wc -l < {runs})" in
      {script}
    esac ;;
esac
"""


@pytest.mark.parametrize(
  ("script", "code", "actions"),
  [
    ("*) exit 0 ;;", 0, "create run delete"),
    ("1) echo PREEMPTED > {state}; exit 1 ;; *) exit 0 ;;", 0, "create run delete create run delete"),
    ("1) exit 75 ;; *) exit 0 ;;", 0, "create run run delete"),
    ("1) exit 255 ;; *) exit 0 ;;", 0, "create run run delete"),
    ("*) exit 3 ;;", 3, "create run delete"),  # the slice is there: the error is the program's own and would come back
    ("*) exit 75 ;;", 75, "create run run run"),
  ],
)
def test_tpu_vm_starts_again_after_a_preemption(script, code, actions, programs, tmp_path):
  state, runs = tmp_path / "state", tmp_path / "runs"
  path = programs("gcloud", GCLOUD.format(state=state, runs=runs, script=script.format(state=state)))
  programs("git")
  command = ["all", "--name=a", "--zone=z", "--type=v5litepod-8", "--nfs=h:/s", "--wait=0", "--times=2", "--", *ONE]
  assert launch("bash", LAUNCH / "tpu_vm.sh", *command, PATH=path)[0] == code
  calls = [call.split()[4] if "inversionview train" not in call else "run" for call in programs.calls()]
  assert " ".join(call for call in calls if call in ("create", "run", "delete")) == actions
  assert calls.count("scp") == actions.count("run")  # every run starts from what was copied to the slice that is there


@pytest.mark.parametrize(
  ("ends", "restarts", "requeued"),
  [(0, 0, False), (75, 50, True), (2, 0, False), (1, 0, False), (137, 0, True), (137, 3, False)],
)
def test_slurm_requeues_a_preempted_job(ends, restarts, requeued, programs, tmp_path):
  programs("scontrol")
  path = programs("srun", f"exit {ends}")
  code, _, _ = launch(
    "bash",
    LAUNCH / "slurm.sbatch",
    *ONE,
    folder=tmp_path,
    PATH=path,
    SLURM_JOB_ID="42",
    SLURM_RESTART_COUNT=str(restarts),
  )
  assert code == ends
  assert ("scontrol requeue 42" in programs.calls()) == requeued


# Sweeps that run.

QUICK = (
  "--config.steps=4", "--config.steps_per_call=2", "--config.batch_size=8", "--config.eval_queries=4", "--config.final_queries=4",
  "--config.target.steps=4", "--config.target.steps_per_call=2", "--config.target.batch_size=8",
)  # fmt: skip


def swept(tmp_path, platform, command, *more):
  """Launches two work units of the tiny addition config: (exit code, stdout, stderr)."""
  return launch(
    sys.executable, LAUNCH / "xm_launch.py", f"--config={TINY}", f"--workdir={tmp_path}/{{xid}}/{{wid}}", "--only=1,5",
    f"--command={command}", f"--platform={platform}", "--tags=test", f"--config.data.dir={tmp_path}/data", *QUICK, *more,
    HOME=str(tmp_path), XLA_FLAGS="", JAX_DISABLE_MOST_OPTIMIZATIONS="1",
  )  # fmt: skip


def check_units(tmp_path, result, part):
  """Checks the folders that the two units left; returns the experiment's id."""
  code, out, error = result
  assert code == 0, out + error
  xid = re.search(r"experiment (\d+): .* #test; 2 work units", out)[1]
  folders = {path.name: path / part for path in (tmp_path / xid).iterdir()}
  made = {wid: json.loads((folder / "config.json").read_text()) for wid, folder in folders.items()}
  assert {wid: (c["seed"], c["steps"]) for wid, c in made.items()} == {"1": (0, 4), "5": (1, 4)}
  assert len({(folder / "model.safetensors").read_bytes() for folder in folders.values()}) == 2
  return xid


@pytest.mark.slow
def test_sweep_of_two_work_units_runs(tmp_path):
  check_units(tmp_path, swept(tmp_path, "processes", "train-target"), "target")


@pytest.mark.slow
def test_sweep_of_two_readers_runs_and_reports_failed_units(tmp_path):
  xid = check_units(tmp_path, swept(tmp_path, "processes", "train"), "decoder")
  made = {wid: json.loads((tmp_path / xid / wid / "decoder" / "config.json").read_text()) for wid in "15"}
  assert {wid: c["optimizer"]["lr"] for wid, c in made.items()} == {"1": 1e-3, "5": 3e-3}
  code, out, _ = swept(tmp_path, "processes", "train", "--config.data.config=none")
  assert code == 2 and "exit code 2: work units 1, 5" in out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("xmanager") is None, reason="needs the extra `launch`")
def test_sweep_of_two_work_units_runs_through_xmanager(tmp_path):
  result = swept(tmp_path, "local", "train-target")
  check_units(tmp_path, result, "target")
  assert "through XManager" in result[1] and list((tmp_path / ".xmanager").glob("*.sqlite3"))
  code, out, _ = swept(tmp_path, "xm_local", "train-target", "--config.data.config=none")
  assert code == 2 and "exit code 2: work units 1, 5" in out


def test_exit_codes_of_work_units(tmp_path):
  import xm_launch

  commands = {
    wid: ["bash", "-c", f"echo {wid} >> {tmp_path}/ran; exit {code}"] for wid, code in ((3, 0), (4, 7), (5, 0))
  }
  assert xm_launch.run_processes(commands, 1) == {3: 0, 4: 7, 5: 0}
  assert (tmp_path / "ran").read_text().split() == ["3", "4", "5"]
  with pytest.raises(InversionViewError, match="no-such-program"):
    xm_launch.run_processes({1: ["no-such-program"]}, 1)
