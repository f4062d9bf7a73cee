"""The manifests hold what they promise: the current CRD, the least rights, the restricted Pod Security profile."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import jobs
from pipelines.crd import definition
from pipelines.reconcile import Wanted
from tests.pipelines.test_reconcile import pipeline

MANIFESTS = Path(__file__).parents[2] / "manifests"

Object = dict[str, Any]


def things(kind: str) -> dict[str, Object]:
    """Objects of a kind by name, from all folders."""
    every = [thing for file in MANIFESTS.rglob("*.yaml") for thing in yaml.safe_load_all(file.read_text())]
    return {thing["metadata"]["name"]: thing for thing in every if thing["kind"] == kind}


def test_the_definition_is_that_of_the_model() -> None:
    written = yaml.safe_load((MANIFESTS / "base" / "crd.yaml").read_text())
    assert written == definition(), "dalil schema > manifests/base/crd.yaml"


RIGHTS = {
    "dalil-operator": {
        "dalil.dev/searchpipelines": {"get", "list", "watch"},
        "dalil.dev/searchpipelines/status": {"patch"},
        "batch/jobs": {"get", "list", "watch", "create", "delete"},
        "/pods": {"get", "list", "watch"},
        "/configmaps": {"create", "patch"},
        "/services": {"create"},
        "/events": {"create"},
    },
    "dalil-step": {"dalil.dev/searchpipelines/status": {"patch"}},
}


def test_nobody_has_other_rights_than_these() -> None:
    found: dict[str, dict[str, set[str]]] = {}
    for name, role in things("Role").items():
        for rule in role["rules"]:
            assert rule.keys() == {"apiGroups", "resources", "verbs"}
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found.setdefault(name, {}).setdefault(f"{group}/{resource}", set()).update(rule["verbs"])
    assert found == RIGHTS
    assert not things("ClusterRole")
    assert not things("ClusterRoleBinding")
    for name, binding in things("RoleBinding").items():
        assert binding["roleRef"]["name"] == name
        assert [subject["name"] for subject in binding["subjects"]] == [name]


def pods() -> list[Any]:
    """(what it is, pod spec) of everything that runs."""
    about = {"uid": "1"}
    around = jobs.Surroundings("dalil", [], "claim")
    step = jobs.job(pipeline(), Wanted("p-search-0-12345678-0", "search", "0", "12345678"), about, around)
    written = [*things("Deployment").values(), *things("StatefulSet").values()]
    return [pytest.param(thing["spec"]["template"]["spec"], id=thing["metadata"]["name"]) for thing in [*written, step]]


@pytest.mark.parametrize("spec", pods())
def test_pods_fit_the_restricted_profile(spec: Object) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI", "ephemeral"}
    assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"])
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("spec", pods())
def test_no_pod_has_a_password_in_its_spec(spec: Object) -> None:
    for container in spec["containers"]:
        for entry in container.get("env", []):
            assert "value" not in entry or "://" not in entry["value"] or entry["value"].startswith("file:"), entry
