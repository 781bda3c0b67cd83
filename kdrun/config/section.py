"""What a config node is, and the kinds of values in it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]  # a part of file names


class Section(BaseModel):
    """A node of the config: closed, frozen, nothing coerced to finite silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def numbers_are_numbers(cls, values: Any) -> Any:
        """true is the number 1 to Python, and to pydantic; what does not fit into 64 bits ends in torch's traceback."""
        for name in cls.model_fields.keys() & values.keys() if isinstance(values, dict) else ():
            items = values[name] if isinstance(values[name], list | tuple) else [values[name]]
            at = {"key": name, "input": values[name]}
            if cls.model_fields[name].annotation is not bool and any(isinstance(item, bool) for item in items):
                raise PydanticCustomError("truth_value", "must not be true or false", at)
            if any(isinstance(item, int) and abs(item) >= 2**63 for item in items):
                raise PydanticCustomError("too_large", "must be below 2^63", at)
        return values
