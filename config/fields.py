"""What all settings are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from config.args import NAME

Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=NAME)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)
