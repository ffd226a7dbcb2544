"""Keys in Secret blocks, on a real server: given to a run, hidden, and missed with the way out."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from pydantic import ValidationError

from flows.prefect_api.secret_blocks import provide_secrets
from flows.prefect_api.server import prefect_api
from pipeline.config import RunConfig
from pipeline.config.files import dump_config
from pipeline.errors import UserError
from pipeline.safe_text import key_variables, redacted

KEY = "a-key-that-is-in-no-file"


def config(**secrets: str) -> RunConfig:
    plain: dict[str, Any] = {"name": "x", "mode": "offline", "policy": {"path": "m"}, "pairs": {"path": "p"}}
    return RunConfig.model_validate({**plain, "secrets": secrets})


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MY_JUDGE", "PREFLOOP_KEY_VARIABLES", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFECT_HOME", str(home))
        with temporary_settings({PREFECT_HOME: home}), prefect_api(home / "server.log"):
            yield home


@pytest.mark.whole
def test_a_run_gets_the_key_and_nobody_reads_it(home: Path) -> None:
    Secret(value=KEY).save("my-judge", overwrite=True)
    made = config(MY_JUDGE="my-judge")
    provide_secrets(made)
    assert os.environ["MY_JUDGE"] == KEY
    assert redacted(f"refused {KEY}") == "refused [hidden]"
    assert KEY not in dump_config(made) and key_variables(made.model_dump(mode="json")) == {"MY_JUDGE"}


@pytest.mark.whole
def test_a_block_that_is_missing_or_holds_no_text_is_named_with_the_way_out(home: Path) -> None:
    with pytest.raises(UserError, match=r"secrets.MY_JUDGE: Prefect's server at .* no Secret block nobody; make one"):
        provide_secrets(config(MY_JUDGE="nobody"))
    Secret(value={"a": 1}).save("many", overwrite=True)
    with pytest.raises(UserError, match=r"secrets.MY_JUDGE: Secret block many holds no text"):
        provide_secrets(config(MY_JUDGE="many"))
    assert os.environ["MY_JUDGE"] == ""


def test_a_variable_that_is_set_stays_and_asks_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with temporary_settings({PREFECT_HOME: tmp_path, PREFECT_API_URL: None}):
        with pytest.raises(UserError, match=r"secrets.MY_JUDGE: block my-judge is kept .* none is running; start"):
            provide_secrets(config(MY_JUDGE="my-judge"))
        monkeypatch.setenv("MY_JUDGE", "mine")
        provide_secrets(config(MY_JUDGE="my-judge"))
    assert os.environ["MY_JUDGE"] == "mine"


def test_names_that_are_none_are_refused() -> None:
    for wrong in ({"A-B": "x"}, {"A": "my secret"}, {"A": "../x"}):
        with pytest.raises(ValidationError, match="secrets"):
            config(**wrong)
