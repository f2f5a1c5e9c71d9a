"""The result of a run: the fields of `summary.json`, which `training/run.py` fills, and digests that reveal changes."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

SCHEMA = 1  # raise it when an old reader would misread the fields

_LIMIT = 1e18  # no count and no time is larger
_Count = Annotated[int, Field(ge=1, le=_LIMIT, description="a whole number from 1")]
_CountOrZero = Annotated[int, Field(ge=0, le=_LIMIT, description="a whole number from 0")]
_Positive = Annotated[float, Field(gt=0, le=_LIMIT, description="a number above 0")]
_NotNegative = Annotated[float, Field(ge=0, le=_LIMIT, description="a number from 0")]
_Text = Annotated[str, Field(description="text")]
# JSON has no NaN and no infinity: a measurement that is not finite is missing.
_FINITE = BeforeValidator(lambda value: None if isinstance(value, float) and not math.isfinite(value) else value)
_Share = Annotated[float, Field(ge=0, le=1)]
_Fraction = Annotated[_Share | None, _FINITE, Field(description="a number from 0 to 1")]
_Loss = Annotated[float | None, _FINITE, Field(description="a number")]


class Summary(BaseModel):
    """The result of one run. Accuracies are top-1 as fractions, losses mean cross-entropies, times in seconds.

    Fields without a default are required of every record; the others are missing in records of other programs.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    status: Annotated[Literal["finished", "diverged"], Field(description="'finished' or 'diverged'")]
    title: str = ""
    config_name: str | None = None
    version: Annotated[Literal["v1", "v2"], Field(description="'v1' or 'v2'")]
    variant: _Text
    alpha: _Positive
    rho: _Positive
    expansion: Annotated[_Positive | None, Field(description="a number above 0, or null for v1")]
    resolution: _Count  # pixels a side of the network's input
    dataset: _Text
    num_classes: int | None = None
    params: _Count  # trainable parameters
    mult_adds: _Count  # of one image
    seed: _CountOrZero
    epochs: _Count
    steps: int | None = None
    test_accuracy: _Fraction
    test_loss: _Loss = None
    test_top5: _Fraction = None
    protocol: str | None = None  # how the images of a streamed set were cut out for evaluation: 'slim' or 'torch'
    val_accuracy: _Fraction = None
    val_loss: _Loss = None
    train_accuracy: _Fraction = None
    train_loss: _Loss = None
    train_images_per_second: _NotNegative
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    wall_seconds: _NotNegative
    input_wait_share: _Fraction = None  # of the training time, for which the device had no batch of a streamed set
    undecodable: int | None = None  # pictures of a streamed set that were left out
    first_step_seconds: float = 0.0
    device: _Text
    fused: int = 1  # runs that one program trained together
    resumed_from: int = 0  # step
    params_sha256: str | None = None  # of the final weights and batch-norm statistics
    metrics_sha256: str | None = None  # of metrics.jsonl

    @model_validator(mode="after")
    def _complete(self) -> "Summary":
        if self.status == "finished" and self.test_accuracy is None:
            raise ValueError("test_accuracy is None, allowed is a number from 0 to 1 for a finished run")
        if self.version == "v2" and self.expansion is None:
            raise ValueError("expansion is None, allowed is a number above 0 for v2")
        return self


_OPTIONAL = {name for name, field in Summary.model_fields.items() if not field.is_required()}


def seal(summary: Summary, metrics: bytes) -> dict[str, Any]:
    """Return what `summary.json` holds: the fields, the schema, and digests of `metrics.jsonl` and of all of this."""
    stored = {"schema": SCHEMA, **summary.model_dump(), "metrics_sha256": hashlib.sha256(metrics).hexdigest()}
    return stored | {"sha256": _digest(stored)}


def unseal(stored: Mapping[str, Any], sealed: bool = False) -> Summary:
    """Return the summary that `summary.json` holds. A record of another program has no digest, unless it is `sealed`.

    Raises:
      ValueError: the schema is unknown, the digest does not match, or a field is not allowed. The message is the end of
        a sentence about the file.
    """
    schema = stored.get("schema", "absent")
    if schema is True or schema != SCHEMA:
        raise ValueError(f"its schema is {str(schema)[:40]}, known here is {SCHEMA}")
    if stored.get("sha256", "" if sealed else _digest(stored)) != _digest(stored):
        raise ValueError("it is not what was written")
    return parse(stored)


def parse(fields: Mapping[str, Any]) -> Summary:
    """Return the summary with these fields; raises ValueError as `unseal` does. An optional field may be null."""
    fields = {k: v for k, v in fields.items() if v is not None or k not in _OPTIONAL}
    try:
        return Summary.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
    if not first["loc"]:
        raise ValueError(first["msg"].removeprefix("Value error, "))
    key = str(first["loc"][0])
    value = repr(fields[key])[:40] if key in fields else "absent"
    allowed = Summary.model_fields[key].description or first["msg"].removeprefix("Input should be ")
    raise ValueError(f"{key} is {value}, allowed is {allowed}")


def metrics_match(summary: Summary, metrics: bytes) -> bool:
    """Return whether `metrics.jsonl` holds what it held when the summary was written; True where that is unknown."""
    return summary.metrics_sha256 in (None, hashlib.sha256(metrics).hexdigest())


def _digest(stored: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in stored.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
