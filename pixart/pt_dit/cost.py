"""Work of a pass in multiply-accumulate operations (MACs), counted as for PixArt in `pixart.accelerate.cost`."""
from dataclasses import dataclass

from ..accelerate.cost import Costs
from .config import PTDiTConfig


@dataclass(frozen=True)
class PTDiTCosts:
    """Costs of one row, an image with one prompt. height and width in pixels; text: caption tokens, padding included.

    attention: count the products of queries, keys and values too.
    """

    config: PTDiTConfig
    height: int
    width: int
    text: int
    attention: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of the image, its sides rounded up to whole windows."""
        side = 8 * self.config.patch * self.config.window
        rows, columns = (-(-length // side) for length in (self.height, self.width))
        return rows * columns * self.config.window ** 2

    @property
    def block(self) -> dict[str, int]:
        """MACs of one block, by the names of its branches."""
        c, tokens, proxies = self.config, self.tokens, self.tokens // self.config.proxy ** 2
        square, product = c.hidden ** 2, 2 * c.hidden * self.attention
        near, text = 4 * tokens * square + product * tokens * c.window ** 2, self.text
        parts = {"proxy_attn": 4 * proxies * square + product * proxies ** 2,
                 "visual_attn": (3 * tokens + 2 * proxies) * square + product * tokens * proxies,
                 "attn": near, "shifted_attn": near + tokens * square if c.shifted else 0,
                 "cross_attn": 2 * (tokens + text) * square + product * tokens * text, "mlp": 8 * tokens * square}
        return parts

    def row(self) -> int:
        """MACs of one row through the whole network."""
        return Costs(self.config, self.tokens, self.text).overhead + self.config.depth * sum(self.block.values())
