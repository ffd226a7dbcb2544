"""Settings of the machines that a run works on: cluster, what it shares with other runs, what it keeps on disk."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import OPERATIONAL, Closed

_NAMED = "address of the cluster's head, such as 10.0.0.5:6379; auto: RAY_ADDRESS, or the cluster of this machine"
_INTERFACE = "network interface between training processes, such as eth0; default: gloo's and NCCL's own choice"


# Prefect refuses other characters in names.
_LIMIT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
BlockName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,99}$")]
TrackerKind = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class LocalCluster(Closed):
    """Processes of this machine."""

    kind: Literal["local"] = "local"


class RayCluster(Closed):
    """Actors on the machines of a Ray cluster that runs already; needs the extra ``ray`` on all of them."""

    kind: Literal["ray"] = "ray"
    address: str = Field("auto", min_length=1, description=_NAMED, json_schema_extra=OPERATIONAL)
    engine_cpus: int = Field(
        1, ge=1, description="cores that an engine or a labeller's model reserves", json_schema_extra=OPERATIONAL
    )
    training_cpus: int = Field(
        1, ge=1, description="cores that a training process reserves", json_schema_extra=OPERATIONAL
    )
    interface: str | None = Field(None, min_length=1, description=_INTERFACE, json_schema_extra=OPERATIONAL)
    connect_timeout: float = Field(
        60, gt=0, description="seconds for the cluster to answer", json_schema_extra=OPERATIONAL
    )
    place_timeout: float = Field(
        120,
        gt=0,
        description="seconds to wait for cores or cards that the cluster has, but that are in use",
        json_schema_extra=OPERATIONAL,
    )
    lost_after: float = Field(
        60,
        gt=0,
        description="seconds without a sign of life after which a machine is lost",
        json_schema_extra=OPERATIONAL,
    )


ClusterSettings = Annotated[LocalCluster | RayCluster, Field(discriminator="kind")]


class CardLimit(Closed):
    """The name of the global concurrency limit in Prefect of which a slot is held while the accelerator is used."""

    gpu: str | None = Field(
        None,
        pattern=_LIMIT,
        description="limit of the accelerator; a stage gives its slot back once the processes that used it have ended",
        json_schema_extra=OPERATIONAL,
    )


class Resources(CardLimit):
    """Names of Prefect's global concurrency limits; a stage holds a slot of each one that it needs while it works."""

    judge: str | None = Field(
        None,
        pattern=_LIMIT,
        description="limit of the judge's server, for stages that ask it",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _two_limits(self) -> "Resources":
        if self.gpu is not None and self.gpu == self.judge:
            raise ValueError(f"judge: {self.judge} is gpu's limit too; a stage that needs both would wait for itself")
        return self


class Retention(Closed):
    """Weights that no stage will read again are removed, policy by policy, after each round; everything else stays."""

    last: int | None = Field(None, ge=1, description="keep the policies of this many rounds, the newest; default: all")
    best: bool = Field(True, description="keep that of the best round: the gate's, or by win rate, reward or accuracy")
    start: bool = Field(True, description="keep that of round 0, which a complete run needs to be extended")
