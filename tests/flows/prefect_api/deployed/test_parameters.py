"""The form of a deployment."""

from pathlib import Path

from jsonschema import Draft202012Validator
from prefect.utilities.callables import parameter_schema

from flows.iterative import iterative
from flows.offline import offline
from flows.prefect_api.deployed.parameters import offer_stages
from pipeline.config.files import load_config
from tests.support.tiny_run import make_job


def test_a_form_offers_the_stages_of_the_config_and_takes_others(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    for flow, mode in ((iterative, "iterative"), (offline, "offline")):
        config = load_config([job / f"{mode}.yaml"])
        schema = offer_stages(parameter_schema(flow.fn).model_dump(exclude_unset=True), config)
        for name in ("until", "redo_from"):
            known, typed, none = schema["properties"][name]["anyOf"]
            assert {"0:data", "1:pairs", "2:evaluation"} <= {*known["enum"]} and none == {"type": "null"}
            assert ("1:samples" in known["enum"]) == (mode == "iterative") and "3:pairs" not in known["enum"]
            assert schema["properties"][name]["title"] and "2:gate" in known["enum"]
            form = Draft202012Validator(schema)
            assert form.is_valid({"run_dir": "a", name: "7:pairs"}) and form.is_valid({"run_dir": "a", name: None})
            assert not form.is_valid({"run_dir": "a", name: "pairs"}) and "pattern" in typed
    without = load_config([job / "offline.yaml"], ["gate=null"])
    schema = offer_stages(parameter_schema(offline.fn).model_dump(exclude_unset=True), without)
    assert not [one for one in schema["properties"]["until"]["anyOf"][0]["enum"] if one.endswith("gate")]
