"""PixArtTransformer with the forward that the host calls, its wrappers, block patches and attention."""
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ...pixart.config import PixArtConfig
from ...pixart.model.block import PixArtBlock, ScaleShiftTable
from ...pixart.model.flexdit import FlexDiT
from ...pixart.model.flexdit_config import FlexDiTConfig
from ...pixart.model.policy import Pass, Policy, Run
from ...pixart.model.transformer import PixArtTransformer
from .attention_patch import AttentionPatch
from .conditioning import mask_of
from .foreign import refuse_foreign
from .mixin import Mixin
from .policy_run import RUN, PolicyRun

DOUBLE_BLOCK = "double_block"  # the host's name for a transformer block


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None, options: Mapping | None) -> Tensor:
    """The host's attention, as chosen by its start options and overridden by patches; (B, N, D) in and out."""
    from comfy.cli_args import args
    from comfy.ldm.modules import attention
    wished = args.use_split_cross_attention or args.use_quad_cross_attention
    if q.device.type == "cpu" and not wished:       # the host's own choice takes up to three times as long there
        kernel = attention.attention_pytorch
    else:
        kernel = attention.optimized_attention if bias is None else attention.optimized_attention_masked
    if bias is not None:            # of full shape: the one form that every backend understands
        bias = bias.expand(-1, 1, q.shape[1], -1)
    return kernel(q, k, v, heads, mask=bias, transformer_options=options)


class BlockPatches(Policy):
    """Runs what `patches_replace["dit"]` and `patches["double_block"]` of the host attach to blocks.

    The last of all policies, because it knows blocks by number only: it is not called where other policies skip them.
    """

    def __init__(self, options: Mapping) -> None:
        self.options = options
        self.replace = options.get("patches_replace", {}).get("dit", {})
        self.after = options.get("patches", {}).get(DOUBLE_BLOCK, [])

    def __bool__(self) -> bool:
        return bool(self.after) or any(name[0] == DOUBLE_BLOCK for name in self.replace)

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        """The control of the block is added before anything of another pack, which may leave the block out."""
        p = p.controlled(index)
        replacement = self.replace.get((DOUBLE_BLOCK, index))
        x = go(p) if replacement is None else self.replaced(replacement, p, go)
        for patch in self.after:
            x = patch({"img": x, "txt": p.text, "x": x, "block_index": index,
                       "transformer_options": self.options})["img"]
        return x

    def replaced(self, replacement: Callable[[dict, dict], dict], p: Pass, go: Run) -> Tensor:
        state = {"img": p.x, "txt": p.text, "vec": p.modulation, "pe": None, "transformer_options": self.options}

        def original(given: dict) -> dict:
            return {**given, "img": go(p.with_x(given["img"]))}
        return replacement(state, {"original_block": original})["img"]


class _Table(Mixin):
    """ScaleShiftTable on the host's Embedding, whose `weight` the host moves, casts and patches like that of any layer.

    As a plain module it would lose its patches whenever the host keeps part of a model out of GPU memory.
    """

    def __call__(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """modulation (B, rows, D) or (B, 1, D) -> rows tensors (B, 1, D) in its dtype."""
        table = self.changed_table(modulation.device) if self.is_changed() else self.table(modulation.device)
        return (table + modulation).to(modulation.dtype).chunk(self.num_embeddings, dim=1)

    def is_changed(self) -> bool:
        """Whether adapters have put a forward of theirs in place; those of the host leave this class's own behind."""
        forward = self.__dict__.get("forward")
        return forward is not None and getattr(forward, "__func__", None) is not type(self).forward

    def table(self, device: torch.device) -> Tensor:
        """(rows, D), float32"""
        return super().forward(torch.arange(self.num_embeddings, device=device), out_dtype=torch.float32)

    def changed_table(self, device: torch.device) -> Tensor:
        """(rows, D) with what the host's bypass adapters add: they put another `forward` in place of the one below."""
        return self.forward(torch.eye(self.embedding_dim, device=device)).T

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) -> (N, rows): the table as the linear layer that adapters take everything with a weight for."""
        return torch.nn.functional.linear(x, self.table(x.device))


@functools.lru_cache(maxsize=8)      # some hosts make layer classes anew for every model
def table_class(embedding: type) -> type:
    """One class for all tables made of the same layers, or torch.compile would take every block for another kind."""
    return type("HostScaleShiftTable", (_Table, embedding), {})


def host_table(table: ScaleShiftTable, ops: Any) -> torch.nn.Module:
    rows, width = table.weight.shape
    return table_class(ops.Embedding)(rows, width, dtype=torch.float32, device=table.weight.device)


class AskRun(Policy):
    """Stands for the policies of the run, which are looked up outside of compiled graphs."""


ASK_RUN = AskRun()


class HostTransformer(PixArtTransformer):
    """The model inside the host's model object. Submodules, and so the names of all weights, are inherited."""

    def __init__(self, config: PixArtConfig, ops: Any, dtype: torch.dtype | None, device: Any) -> None:
        super().__init__(config, ops=ops, attend=attend, dtype=dtype, device=device)
        self.y_embedder.y_embedding = self.y_embedder.y_embedding.float()   # small, and never stored as fp8
        for owner in (*self.blocks, self.final_layer):
            owner.scale_shift_table = host_table(owner.scale_shift_table, ops)
        # What the host's own PixArt network calls these: nodes of the host and of other packs look for them.
        self.depth, self.hidden_size, self.num_heads = config.depth, config.hidden, config.heads
        self.in_channels, self.out_channels, self.patch_size = config.channels, config.out_channels, config.patch
        self.pred_sigma = config.out_channels == 2 * config.channels
        self.micro_conditioning = config.micro_conditioning
        self.pe_interpolation, self.pe_precision = config.position_scale, None

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, control: Mapping | None = None,
                transformer_options: Mapping | None = None, c_size: Tensor | None = None, c_ar: Tensor | None = None,
                text_mask: Tensor | None = None, policies: bool = False, **_: object) -> Tensor:
        """x (B, 4, H, W) scaled, timesteps (B,) 0..999, context (B, L, C) -> noise (B, 4, H, W).

        c_size (B, 2) height and width in pixels; c_ar (B, 1) height / width, float32 bits in int32 so that the host
        does not round it; text_mask (B, L) int32, 1 = a real token, or (B, 0) where no row is padded; policies: ask
        those of the run. Whatever else wrappers of other packs pass is ignored. transformer_options stays the
        last positional argument: that is where the host's caches look for it.
        """
        from comfy import patcher_extension as host
        options = {} if transformer_options is None else transformer_options
        refuse_foreign(options, len(self.blocks))
        wrappers = host.get_all_wrappers(host.WrappersMP.DIFFUSION_MODEL, options)
        executor = host.WrapperExecutor.new_class_executor(self.predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options,
                                c_size=c_size, c_ar=c_ar, text_mask=text_mask, policies=policies)

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor, control: Mapping | None,
                transformer_options: Mapping, c_size: Tensor | None = None, c_ar: Tensor | None = None,
                text_mask: Tensor | None = None, policies: bool = False) -> Tensor:
        """What `forward` does inside of all wrappers."""
        aspect = None if c_ar is None else c_ar.view(torch.float32).flatten()               # (B,)
        size = None if c_size is None else c_size.float()                                   # (B, 2)
        asked = [ASK_RUN] if policies else self.patches(transformer_options)
        return super().forward(x, timesteps, context, mask_of(text_mask), size, aspect, residuals(control), asked, None,
                               transformer_options)

    def patches(self, options: Mapping) -> list[Policy]:
        """The patches that the host and other packs attach to this pass."""
        return [patch for patch in (BlockPatches(options), AttentionPatch(self, options)) if patch]

    def ask_stack(self, p: Pass, policies: Sequence[Policy]) -> Tensor:
        if ASK_RUN not in policies:
            return super().ask_stack(p, policies)
        options = p.options or {}
        run: PolicyRun | None = options.get(RUN)
        step = None if run is None else run.step(options, p.x.shape[0], p.grid, p.x.device)
        asked = [] if run is None or step is None else run.policies
        return super().ask_stack(replace(p, step=step), [*asked, *self.patches(options)])

    def compute(self, block: PixArtBlock, p: Pass, only: str | None = None) -> Tensor:
        """Also where the host compiles the whole model: policies run outside of its graph, their blocks in one."""
        run: PolicyRun | None = (p.options or {}).get(RUN)
        return super().compute(block if run is None else cast(PixArtBlock, run.block(block)), p, only)


class HostFlexDiT(HostTransformer, FlexDiT):
    """The same for a FlexDiT, whose blocks and their order it has."""


def network_in(model: Any) -> HostTransformer | None:
    """The transformer of this pack in a model object of the host, also under torch.compile."""
    network = getattr(model, "diffusion_model", None)
    network = getattr(network, "_orig_mod", network)
    return network if isinstance(network, HostTransformer) else None


def residuals(control: Mapping | None) -> list[Tensor | None] | None:
    """The host's control dict -> one residual (B, N, D) or None per block; entry i belongs to block i."""
    if control is None:
        return None
    lists = {name: entries for name, entries in control.items() if any(entry is not None for entry in entries)}
    if not lists:
        return None
    if set(lists) != {"output"} or any(entry is not None and entry.ndim != 3 for entry in lists["output"]):
        raise ValueError("this ControlNet was made for another kind of model (its residuals are "
                         f"{', '.join(sorted(lists))}); load a PixArt ControlNet.")
    return list(lists["output"])


def builder(config: PixArtConfig) -> Callable[..., HostTransformer]:
    """The function that the host calls to make the network, with its own keyword arguments."""
    def build(dtype: torch.dtype | None = None, device: Any = None, operations: Any = None,
              **_: object) -> HostTransformer:
        kind = HostFlexDiT if isinstance(config, FlexDiTConfig) else HostTransformer
        return kind(config, operations, dtype, device)
    return build
