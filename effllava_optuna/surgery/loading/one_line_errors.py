"""Show the errors of transformers for a checkpoint as errors of this package."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllava_optuna.checkpoint_format import refuse_code
from effllava_optuna.errors import ModelError, describe
from effllava_optuna.torchvision_package import (
    find_misfit,
    install_command,
    require_torchvision,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# In the errors of transformers about a processor with a video part, if there is no torchvision.
_VIDEO_WORDS = ("torchvision", "video_processor", "videoprocessor")


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
        if any(word in _messages(error) for word in _VIDEO_WORDS):
            require_torchvision(source)
        misfit = find_misfit()
        if misfit:  # then transformers imports hardly anything, whatever its error is
            raise ModelError(f"{misfit}.", hint=f"Run `{install_command()}`.") from error
        raise ModelError(
            f"{source!r} does not load: {describe(error)}.",
            hint="Use a directory or hub id that AutoModelForImageTextToText or "
            "AutoModelForCausalLM, and AutoProcessor load, or digits-vlm.",
        ) from error


def _messages(error: BaseException | None) -> str:
    """Return the messages of an error and of those that led to it, in lower case."""
    messages = ""
    while error is not None:
        messages += f"{error}\n".lower()
        error = error.__cause__ or error.__context__
    return messages
