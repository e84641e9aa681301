"""How the image tokens of a model are reduced."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.visual_tokens.token_selection import reduced_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

SELECTIONS = ("diversity", "pooling", "random")
_TILES = ("image_seq_length", "image_seq_len")  # of processors whose tiles have equally many


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """The image tokens that policies may keep.

    Attributes:
        widths: Percents of the image tokens, ascending; the last one is 100.
        selection: How those that stay are selected; see `TokenReduction`.
    """

    widths: tuple[int, ...]
    selection: str = "diversity"

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return the shares of the image tokens below 1."""
        return tuple(width / 100 for width in self.widths[:-1])


@dataclass(frozen=True, slots=True)
class TokenReduction:
    """How the image tokens of a model are reduced.

    Attributes:
        ratio: The share of the tokens of a picture, or of each tile, that stays, in (0, 1]; at
            least one token does.
        selection: ``diversity``: the tokens that differ most, greedily; ``pooling``: averages of
            a square grid; ``random``: the same positions of every picture.
        token: The image token of the processor.
        tile: Image tokens of one tile; None: a picture is one run of tokens, however long.
        seed: Seed of ``random``.
    """

    ratio: float
    selection: str
    token: str
    tile: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ModelError(
                f"A share of {self.ratio:g} of the image tokens cannot be kept.",
                hint="Use a number above 0, up to 1.",
            )
        if self.selection not in SELECTIONS:
            raise ModelError(
                f"There is no token selection {self.selection!r}.",
                hint=f"Use {', '.join(SELECTIONS)}.",
            )

    @staticmethod
    def of(
        model: Any, processor: Any, ratio: float, selection: str = "diversity", seed: int = 0
    ) -> TokenReduction:
        """Describe a reduction for a model and its processor."""
        tiles = (getattr(processor, name, None) for name in _TILES)
        number = int(model.config.image_token_id)
        return TokenReduction(
            ratio=ratio,
            selection=selection,
            token=str(processor.tokenizer.convert_ids_to_tokens(number)),
            tile=next((tile for tile in tiles if tile), None),
            seed=seed,
        )

    def shortened(self, prompt: str) -> str:
        """Shorten each run of image tokens in a prompt that a processor has expanded.

        Raises:
            ModelError: A run is no square grid, which ``pooling`` needs.
        """
        try:
            return reduced_prompt(prompt, self.to_json())
        except ValueError as error:
            raise ModelError(f"{error}.", hint="Use diversity or random.") from error

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> TokenReduction:
        """Read what `to_json` returned."""
        return TokenReduction(**document)
