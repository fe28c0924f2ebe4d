"""Configuration of the `parse` stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hedgerow.stage import StageConfig

Name = str | Annotated[int, Field(ge=0)]


class ParseConfig(StageConfig):
    """Configuration of `parse`."""

    format: Literal["auto", "npy", "json", "msgpack", "csv", "raw"] = Field(
        "auto", description="`auto` uses the content type; `raw` reads the bytes as numbers of `dtype`."
    )
    field: Name | Annotated[tuple[Name, ...], Field(min_length=1)] | None = Field(
        None,
        description="Field of a JSON or MessagePack map that contains the numbers, or its path: `data.v`. Of a list of maps, "
        "the field of each. Of CSV, a column: its name in the first line, or its number, from 0. Several become the "
        "columns of the array, in this order.",
        examples=["values", "data.values", ["temperature", "humidity"], [1, 2]],
    )
    tensors: dict[str, Name] = Field(
        default_factory=dict,
        description="Tensor → its field, for a model with several inputs; instead of `field`.",
        examples=[{"x": "temperature", "y": "humidity"}],
    )
    dtype: (
        Literal[
            "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
        ]
        | None
    ) = Field(
        None,
        description="Convert to this type, or refuse a value that it cannot represent; for `raw`, the type of the bytes "
        "(little-endian). By default, numbers with a fraction and CSV become float32: set float64 to keep every digit.",
    )
    missing: Literal["refuse", "drop"] | float = Field(
        "refuse",
        description="What to do if a value is null, NaN, infinite, empty or absent, or a field is given twice: `refuse` dead-letters "
        "the frame, `drop` drops it as `missing-value`, a number takes the value's place. NaN in .npy and raw numbers is "
        "only dealt with if this is set.",
    )
    text: bool = Field(False, description='Also accept numbers that JSON or MessagePack has as text: `"1.5"`.')
    delimiter: str = Field(",", min_length=1, max_length=1, description="Character between the cells of CSV.")
    decimal: Literal[".", ","] = Field(".", description="Decimal point of the numbers in CSV.")
    time: Name | None = Field(
        None,
        description="Field or CSV column with the capture time: RFC 3339 with an offset, or a number of `time_unit` since 1970.",
    )
    time_unit: Literal["s", "ms", "us", "ns"] = Field("s", description="Unit of such a number.")
    meta: dict[str, str] = Field(
        default_factory=dict,
        description="Meta → the field it is read from, for later stages: `{rate: sampling_hz}`. Other fields of a message have no "
        "effect on stages.",
        examples=[{"rate": "sampling_hz"}],
    )
    max_bytes: int = Field(64 * 2**20, ge=1, description="A larger array is refused.")

    @model_validator(mode="after")
    def _consistent(self) -> ParseConfig:
        if self.tensors and self.field is not None:
            raise ValueError("set either `field` or `tensors`")
        if self.format in ("npy", "raw") and (
            self.tensors or self.meta or self.field is not None or self.time is not None
        ):
            raise ValueError(f"{self.format} has no fields")
        if self.delimiter == self.decimal:
            raise ValueError(f'with `decimal: "{self.decimal}"`, set another `delimiter`, such as ";"')
        return self
