"""Few-step sampling of a latent consistency model (PixArt-delta): 1 to 8 steps, no guidance."""
from collections.abc import Sequence

from torch import Tensor

from .consistency import consistency
from .schedule import STEPS, Callback, Model, Noise, add_noise, batch_of

GRID_SIZE = 50                       # training points: every 20th step, 19, 39, ..., 999
LCM_RULES = ("official", "diffusers")


def lcm_timesteps(steps: int, rule: str = "official", strength: float = 1.0) -> list[int]:
    """Timesteps to visit, descending, e.g. 4 -> 999, 759, 519, 279.

    The two published rules pick different points of the training grid for most step counts: "official" walks down
    in equal strides, "diffusers" spreads evenly over the whole grid (4 -> 999, 759, 499, 259). strength below 1
    (image to image) starts further down the grid.
    """
    if rule not in LCM_RULES:
        raise ValueError(f"unknown LCM timestep rule {rule!r}; use {' or '.join(LCM_RULES)}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}; it must lie above 0 and at most at 1")
    usable = int(GRID_SIZE * strength)
    if not usable:
        raise ValueError(f"strength (denoise) {strength} begins below the first of LCM's {GRID_SIZE} timesteps; use at "
                         f"least {1 / GRID_SIZE}")
    if not 1 <= steps <= usable:
        at = f" at strength (denoise) {strength}" if strength < 1 else ""
        raise ValueError(f"{steps} LCM steps asked for; between 1 and {usable} are possible{at}")
    grid = [STEPS // GRID_SIZE * (i + 1) - 1 for i in range(usable)][::-1]
    if rule == "official":
        return grid[::usable // steps][:steps]
    return [grid[int(i * (usable / steps))] for i in range(steps)]      # rounded as there, by numpy's linspace


def lcm(model: Model, latent: Tensor, timesteps: Sequence[int], noise: Noise,
        callback: Callback | None = None) -> Tensor:
    """Sample from `latent` (B, C, H, W), noised to timesteps[0] (unit Gaussian noise at full strength).

    Each step jumps to a clean latent with the consistency function, then is noised again to the next timestep with
    noise() (B, C, H, W). The result is the last clean latent.
    """
    x = latent
    for step, t in enumerate(timesteps):
        x0 = consistency(x, model(x, batch_of(t, x)), t)
        if callback is not None:
            callback(step, x, x0)
        if step + 1 < len(timesteps):
            x = add_noise(x0, noise(), timesteps[step + 1])
    return x0
