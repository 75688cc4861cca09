"""Site files: what they may say, what is said of a mistake, and how one builds on another."""

from __future__ import annotations

import pytest

from factory.artifacts.resources import shipped
from factory.errors import RecipeError
from factory.slurm import site
from factory.slurm.script import container
from tools.slurm_scripts import VARIABLES

SHIPPED = ["generic-cuda", "generic-rocm", "lumi", "workstation"]


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_every_shipped_site_loads(tmp_path):
    assert sorted(path.stem for path in shipped("slurm/sites").glob("*.yaml")) == SHIPPED
    for name in SHIPPED:
        found = site.load(name, tmp_path)
        assert found.name == name and found.description
        assert found.cpu.gpus == 0 and found.generate.gpus


def write(tmp_path, text: str):
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("extends: lumi\nacount: x\n", 2, "did you mean 'account'"),
        ("extends: lumi\ngenerate:\n  partitoin: x\n", 3, "did you mean 'partition'"),
        ("extends: lumi\ntrain: {time: soon}\n", 2, "hours:minutes:seconds"),
        ("extends: lumi\ntrain: {gpus: 4, cpu_masks: [ff]}\n", 2, "1 cpu_masks for 4 gpus"),
        ("extends: lumi\nlimits: {array: many}\n", 2, "must be a number"),
        ("extends: lumi\nenvironment: {HF_TOKEN: hf_x}\n", 2, "secrets:"),
        ("extends: lumi\naccount: $NOBODY_SET_THIS\n", 2, "NOBODY_SET_THIS is not set"),
        ("extends: lumi\ncaches: /tmp/ours\n", 2, "SLURM_JOB_ID in it"),
        ("extends: lumy\n", None, "did you mean 'lumi'"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_nearest_word(tmp_path, text, line, says):
    with pytest.raises(RecipeError) as raised:
        site.load(write(tmp_path, text), tmp_path)
    assert says in str(raised.value)
    if line is not None:
        assert f"ours.yaml:{line}" in str(raised.value)


def test_a_site_of_ones_own_says_what_is_different(tmp_path, monkeypatch):
    monkeypatch.delenv("LUMI_PROJECT")
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "lab.yaml").write_text(
        "extends: lumi\naccount: project_1\nscratch: /s\nbinds: []\ngenerate: {tasks: 3}\n"
        "environment: {NCCL_NET_GDR_LEVEL: '1', CACHE: $NOT_SET_HERE/x}\n"
    )
    found = site.load("lab", tmp_path)
    assert (found.account, found.name, found.generate.tasks) == ("project_1", "lab", 3)
    assert found.generate.partition == "standard-g"
    assert found.environment["NCCL_SOCKET_IFNAME"] == "hsn0,hsn1,hsn2,hsn3"
    assert found.environment["NCCL_NET_GDR_LEVEL"] == "1"
    assert found.environment["CACHE"] == "$NOT_SET_HERE/x"  # filled in on the node


def test_a_family_that_a_site_says_nothing_of_is_named(tmp_path):
    family = "{partition: p, time: '10'}"
    text = f"generate: {family}\ntrain: {family}\ncpu: {family}\n"
    with pytest.raises(RecipeError, match="has no resources for euroeval"):
        site.load(write(tmp_path, text), tmp_path).family("euroeval")


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:30", 91), ("4:00:00", 240), ("1-6", 1800), ("1-00:30:00", 1470)],
)
def test_a_time_in_minutes(time, minutes):
    assert site.Family(partition="p", time=time).minutes == minutes


def test_gpu_options_of_a_site_stand_in_the_place_of_the_vendors(tmp_path):
    def flags(name, text=""):
        found = site.load(write(tmp_path, f"extends: {name}\n{text}"), tmp_path)
        return container(found, found.generate, [], True)[0]

    assert flags("generic-rocm").startswith("singularity exec --rocm")
    assert flags("generic-cuda").startswith("apptainer exec --nv")
    assert "--rocm" not in flags("lumi")  # as LUMI's guide has it
    assert flags("lumi", "gpu_options: [--rocm]").startswith("singularity exec --rocm --bind")
