"""Show the errors of transformers for a checkpoint as errors of this package."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllava_optuna.checkpoint_format import refuse_code
from effllava_optuna.errors import ModelError, describe

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def errors_in_one_line(source: str) -> Iterator[None]:
    """Raise a ModelError of one line for any error of a damaged or unsupported file."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # parsers of damaged files raise errors without a common class
        if "trust_remote_code" in str(error):  # all classes of transformers say so
            refuse_code(source, "")
        raise ModelError(
            f"{source!r} does not load: {describe(error)}.",
            hint="Use a directory or hub id that AutoModelForImageTextToText or "
            "AutoModelForCausalLM, and AutoProcessor load, or digits-vlm.",
        ) from error
