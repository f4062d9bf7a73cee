"""Bad files: refused at admission with the key's name, or failed by one clear condition."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.messages import SpecError
from pipelines.spec import load
from tests.cluster.conftest import Cluster
from tests.pipelines.test_mistakes import CASES, GOOD

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LATER = {
    "methods: [autofis]\n    autofis: {triples: [false, true], backbone: dlrm}": "what a method can open",
    "<<: {trials: 20}": "kubectl merges the mappings before it sends them",
    "seeds:": "to the API server no value is the default value",
}
"""Mistakes that `dalil validate` knows and admission does not, and why."""


def key_of(file: Path) -> str | None:
    """The key that `dalil validate` names; None if the file is not even YAML to it."""
    with pytest.raises(SpecError) as caught:
        load(file)
    message = str(caught.value)
    found = re.search(r":\d+: ((?:spec|metadata)\.[A-Za-z0-9_.]+)", message)
    if found is None or "a second time" in message:  # kubectl has taken the later one before anybody sees it
        return None
    path = found[1].split(".")
    return path[-2] if path[-2] == "baseline_settings" else path[-1]


def test_a_good_file_is_taken(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", text=GOOD)


def test_bad_files_are_refused_and_the_key_named(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    refused = 0
    for written, instead, _, _ in CASES:
        file.write_text(GOOD.replace(instead, written))
        key = key_of(file)
        if key is None or written in LATER:
            continue
        done = cluster.kubectl("apply", "--dry-run=server", "-f", str(file), check=False)
        assert done.returncode != 0, (written, done.stdout)
        if "error converting YAML to JSON" in done.stderr:  # kubectl cannot read it, so it knows no key either
            continue
        assert key in done.stderr.lower(), (written, done.stderr)
        refused += 1
    print(f"{refused} bad files refused")
    assert refused >= 30


def fails(cluster: Cluster, name: str, **spec: Any) -> dict[str, Any]:
    """The condition with which a pipeline ends."""
    data = {"apiVersion": "dalil.dev/v1alpha1", "kind": "SearchPipeline", "metadata": {"name": name}, "spec": spec}
    cluster.apply(data)
    try:
        status = cluster.finish(name, 300)
        assert status["phase"] == "Failed", status
        return dict(status["conditions"][0])
    finally:
        cluster.kubectl("delete", "searchpipeline", name)


BASELINE = {"search": {"methods": []}, "train": {"baselines": ["fm"]}, "resources": {"cpu": 0.5}}


def test_a_missing_source_fails_with_its_line(cluster: Cluster) -> None:
    dataset = {"format": "movielens", "task": "rating", "source": "/artifacts/nowhere/ratings.dat"}
    condition = fails(cluster, "no-source", dataset=dataset, **BASELINE)
    assert condition["reason"] == "UserMistake"
    assert "/artifacts/nowhere/ratings.dat" in condition["message"]


def test_bad_credentials_fail_with_their_line(cluster: Cluster) -> None:
    dataset = {"format": "movielens", "task": "rating", "source": "s3://dalil-test/ratings.dat"}
    condition = fails(cluster, "no-credentials", dataset=dataset, **BASELINE)
    assert condition["reason"] == "UserMistake"
    assert "s3://dalil-test" in condition["message"]


def test_a_password_in_a_url_is_refused(cluster: Cluster) -> None:
    text = GOOD.replace("source: ratings.dat", "source: https://me:secret@example.com/ratings.dat")
    done = cluster.kubectl("apply", "--dry-run=server", "-f", "-", text=text, check=False)
    assert done.returncode != 0
    assert "source: a URL must not hold credentials" in done.stderr


def test_what_only_dalil_knows_fails_before_the_first_pod(cluster: Cluster) -> None:
    dataset = yaml.safe_load(GOOD)["spec"]["dataset"]
    baseline = {"baselines": ["mf"], "baseline_settings": {"mf": {"choices": {"latent_dims": 8}}}}
    condition = fails(cluster, "no-such-choice", dataset=dataset, search={"methods": []}, train=baseline)
    assert condition["reason"] == "Invalid"
    assert "latent_dims" in condition["message"]
    assert not cluster.all("jobs", pipeline="no-such-choice")
