"""What doctor says of a site, from what SLURM's commands answer."""

from __future__ import annotations

import stat
import sys

import pytest

from factory.artifacts.resources import shipped
from factory.errors import WorkError
from factory.slurm import doctor, queue, site
from tests.slurm.cluster import program


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A site with one GPU partition, and commands that are found."""
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "singularity"):
        program(tmp_path / name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    image = tmp_path / "image.sif"
    image.write_text("")
    token = tmp_path / "token"
    token.write_text("HF_TOKEN=hf_x\n")
    token.chmod(0o600)
    file = tmp_path / "lab.yaml"
    each = "partition: gpu, time: '60'"
    file.write_text(
        f"account: project\nsecrets: {token}\nlimits: {{array: 500}}\n"
        f"generate: {{{each}, gpus: 8, container: {image}}}\ntrain: {{{each}, gpus: 8}}\n"
        f"cpu: {{partition: small, time: '60', factory: {sys.executable}}}\n"
    )
    return site.load(str(file), tmp_path)


ANSWERS = {
    "sacctmgr": "project\nother\n",
    "sinfo": "gpu|2-00:00:00|gpu:mi250:8|up\nsmall|3-00:00:00|(null)|up\n",
    "scontrol": "MaxArraySize            = 1001\n",
}


def answering(**changed):
    def run(command):
        said = (ANSWERS | changed)[command[0]]
        if said is None:
            raise WorkError(f"{command[0]} is broken", "mend it")
        return said

    return run


def states(found):
    return {one.name: one.state for one in found if one.state != "ok"}


def test_a_site_that_is_as_it_says(lab, tmp_path):
    found = doctor.check(lab, tmp_path / "home", run=answering())
    assert states(found) == {}
    names = {one.name for one in found}
    assert {"sbatch", "account", "generate: partition", "limits.array", "secrets", "home"} <= names


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"sacctmgr": "other\n"}, "account"),
        ({"sinfo": "small|1:00|(null)|up\n"}, "generate: partition"),
        ({"sinfo": "gpu|1:00|(null)|up\nsmall|1:00|(null)|up\n"}, "generate: partition"),
        ({"scontrol": "MaxArraySize = 300\n"}, "limits.array"),
        ({"sinfo": None}, "partitions"),
    ],
)
def test_what_is_not_as_it_says_fails_with_a_fix(lab, tmp_path, changed, name):
    found = doctor.check(lab, tmp_path / "home", run=answering(**changed))
    [one] = [one for one in found if one.name == name]
    assert one.state == "failed" and one.fix


def test_files_that_are_missing_or_open_to_others(lab, tmp_path):
    lab.secrets.chmod(0o640)
    lab.generate.container.unlink()
    found = states(doctor.check(lab, tmp_path / "home", run=answering()))
    assert found == {"secrets": "failed", "generate: container": "failed"}
    assert stat.S_IMODE(lab.secrets.stat().st_mode) == 0o640  # it says so, and changes nothing


def test_a_job_of_a_minute_sees_gpus(lab, tmp_path):
    for seen, state in (("8", "ok"), ("0", "failed")):
        found = doctor.check(lab, tmp_path / "home", job=True, run=answering(srun=f"{seen}\n"))
        assert {one.name: one.state for one in found}["generate: GPUs"] == state


def test_a_machine_without_slurm_says_line_by_line_what_is_missing_and_what_to_do(
    lab, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    lab.generate.container.unlink()
    found = {one.name: one for one in doctor.check(lab, tmp_path / "home")}
    bad = {name: one for name, one in found.items() if one.state != "ok"}
    assert {"sbatch", "squeue", "scontrol", "account", "partitions", "limits.array"} <= bad.keys()
    assert all(one.fix for one in bad.values())
    assert "gpu, small, not looked up: there is no sinfo here" in found["partitions"].seen
    assert "slurm/containers/generate.def" in found["generate: container"].fix


def test_commands_without_a_cluster_behind_them_send_to_a_login_node(monkeypatch, tmp_path):
    said = "Could not establish a configuration source"
    program(tmp_path / "sinfo", f"echo 'sinfo: fatal: {said}' >&2\nexit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(WorkError) as raised:
        queue.call(["sinfo"])
    assert "login node" in raised.value.fix


@pytest.mark.parametrize("gpu", ["rocm", "cuda"])
def test_a_missing_image_is_built_from_bases_for_the_gpus_of_the_site(tmp_path, gpu):
    each = f"{{partition: p, time: '60', gpus: 1, container: {tmp_path}/NAME.sif}}"
    families = ("generate", "train", "euroeval")
    text = f"gpu: {gpu}\nruntime: apptainer\ncpu: {each.replace('NAME', 'train')}\n"
    text += "".join(f"{name}: {each.replace('NAME', name)}\n" for name in families)
    (tmp_path / "lab.yaml").write_text(text)
    lab = site.load(str(tmp_path / "lab.yaml"), tmp_path)
    found = {one.name: one.fix for one in doctor.check(lab, tmp_path / "home", run=answering())}
    for name in (*families, "cpu"):
        image = "train" if name == "cpu" else name
        command = (
            f"apptainer build --build-arg-file slurm/containers/{gpu}.args {image}.sif "
            f"slurm/containers/{image}.def"
        )
        assert command in found[f"{name}: container"]
        for word in command.split():
            assert "/" not in word or shipped(word).is_file()
