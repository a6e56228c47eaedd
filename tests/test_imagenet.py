"""The pod script in its small form, and its launchers as far as a machine without pods can run them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "experiments" / "launch"
JOINED = (
    "import jax, pathlib; from jaxfast.mesh import init_distributed; several = init_distributed(); "
    "said = several, jax.process_count(), jax.device_count(); "
    "pathlib.Path({folder!r}, f'joined-{{jax.process_index()}}').write_text(repr(said))"
)


def environment(folder, **variables):
    """Without the cluster that these tests may run on; programs of `folder` come first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "JAX_"))}
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"} | variables


def fake(folder, name, script):
    """A program `name` that stands in for one of the cluster's."""
    path = Path(folder, name)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.slow
def test_the_small_form_goes_on_where_it_was(tmp_path):
    command = "-m experiments.imagenet --fake-data --fake-images 128 --model resnet18 --batch-size 32 --lr 0.05".split()
    command += ["--ema", "0.5", "--every", "2", "--workdir", str(tmp_path / "run"), "--sizes", "32", "40"]

    def run():
        done = subprocess.run(
            [sys.executable, *command, "--epochs", "2"],
            cwd=ROOT,
            env=environment(tmp_path, HOME=str(tmp_path)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = run()
    results = first[-2:]
    assert [line.split()[0] for line in results] == ["last", "averaged"]
    assert results[0].split()[1:] != results[1].split()[1:]
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6]  # one epoch of each size
    assert all(float(row["images/s"]) > 0 for row in rows)
    again = run()
    assert any("resuming from step 6" in line for line in again)
    assert again[-2:] == results


def test_it_wants_data(tmp_path):
    from experiments.imagenet import main

    with pytest.raises(SystemExit, match="give --data .* or --fake-data"):
        main(["--workdir", str(tmp_path)])


def test_published_peaks():
    from experiments.speed import PEAKS

    assert PEAKS["TPU v5 lite"] == 197e12
    # A shorter name must not hide a longer one that begins with it.
    names = list(PEAKS)
    assert all(not longer.startswith(name) for i, name in enumerate(names) for longer in names[i + 1 :])


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sh"])
def test_launchers_parse_and_explain_themselves(name, tmp_path):
    assert subprocess.run(["bash", "-n", LAUNCH / name]).returncode == 0
    wrong = subprocess.run([LAUNCH / name], capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def test_tpu_pod_starts_again_until_it_ends_well(tmp_path):
    calls = tmp_path / "calls"
    fake(tmp_path, "gcloud", f'echo "$@" >> {calls}\n(( $(wc -l < {calls}) < 3 )) && exit 143\nexit 0')
    command = [LAUNCH / "tpu_pod.sh", "pod", "us-west4-a", "python", "-m", "experiments.imagenet", "--data", "a b"]
    dry = subprocess.run(command, env=environment(tmp_path, DRY_RUN="1"), capture_output=True, text=True, check=True)
    assert dry.stdout.startswith("gcloud compute tpus tpu-vm ssh pod --zone us-west4-a --worker=all --command ")
    assert not calls.exists()
    run = subprocess.run(command, env=environment(tmp_path, PAUSE="0"), capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr.count("starting again") == 2
    said = calls.read_text().splitlines()
    assert len(said) == 3 and said[0].endswith(r"python -m experiments.imagenet --data a\ b")


def test_slurm_joins_its_processes(tmp_path):
    # srun as it is on one node of a cluster: two tasks that know their number
    fake(
        tmp_path,
        "srun",
        "shift\nexport SLURM_JOB_ID=$((RANDOM)) SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2\n"
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done; wait -n; a=$?; wait -n; exit $((a | $?))',
    )
    run = subprocess.run(
        [LAUNCH / "slurm.sh", sys.executable, "-c", JOINED.format(folder=str(tmp_path))],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert [(tmp_path / f"joined-{i}").read_text() for i in (0, 1)] == ["(True, 2, 4)"] * 2


def test_slurm_goes_back_into_the_queue(tmp_path):
    fake(tmp_path, "srun", "exit 143")
    fake(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked')
    run = subprocess.run([LAUNCH / "slurm.sh", "x"], env=environment(tmp_path, SLURM_JOB_ID="77"), capture_output=True)
    assert run.returncode == 143 and (tmp_path / "asked").read_text() == "requeue 77\n"


def test_kubernetes_describes_one_job():
    yaml = pytest.importorskip("yaml", reason="reading YAML needs pyyaml")
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["PROCESSES"])
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    # pod 0 answers under the name of the job, its number and the service
    assert variables["COORDINATOR"].startswith(f"{job['metadata']['name']}-0.{service['metadata']['name']}:")


def test_kubernetes_pods_give_their_number(tmp_path):
    yaml = pytest.importorskip("yaml", reason="reading YAML needs pyyaml")
    job = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))[1]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    fake(tmp_path, "python", 'echo "$@"')
    variables = {"COORDINATOR": "host:1", "PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
    run = subprocess.run(
        [*container["command"], *container["args"]],
        env=environment(tmp_path, **variables),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip().endswith("--coordinator host:1 --num-processes 4 --process-id 3")


def test_some_of_the_coordinates_are_not_enough():
    from jaxfast.mesh import init_distributed

    with pytest.raises(ValueError, match="give all three, or none of them"):
        init_distributed("localhost:1234", num_processes=2)


def test_json_of_the_configuration():
    import dataclasses

    from experiments.imagenet import Config

    assert json.loads(json.dumps(dataclasses.asdict(Config("w"))))["sizes"] == [128, 192, 224]


def test_too_late_to_join():
    code = "import jax; jax.devices(); from jaxfast.mesh import init_distributed; init_distributed()"
    late = subprocess.run([sys.executable, "-c", code], env=environment("/"), capture_output=True, text=True)
    assert late.stderr.splitlines()[-1] == (
        "RuntimeError: jax has been used already: call init_distributed() before anything else"
    )
