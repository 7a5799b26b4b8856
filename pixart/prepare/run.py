"""The whole of preparing: survey, text encoder, autoencoder, one after the other, each going on where it stopped."""
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files.claim import claimed
from ..progress import Progress
from ..text.encoded import load_embeddings
from ..weights.fingerprint import weights_fingerprint
from ..weights.safetensors_file import write_tensors
from .captions import Captions, encode_captions, half
from .examples import Example, ExampleReader, stack, uses_hint
from .families import Family
from .latents import PREPARED_EDGES, EdgeMaps
from .network_files import from_files
from .networks import Networks
from .prompts import are_prompts, waiting, write_prompts
from .shards import Shard, next_shard, shard_paths, write_shard
from .sources import items_of
from .state import Skipped, read_skipped, settle, write_skipped
from .survey import Survey, survey

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparationJob:
    """What to prepare, into which folder, with what. Paths that are None are not needed or lead to an error."""

    sources: tuple[Path, ...]
    out: Path
    family: Family
    resolution: int
    vae: Path | None = None
    t5: Path | None = None
    edges: str = "none"
    hed: Path | None = None             # weights of the HED network
    null: Path | None = None            # "no caption", as saved by `python -m pixart encode`, instead of T5's
    bits: int = 16                      # precision of T5
    batch: int = 4                      # images (on a GPU captions too) at a time
    shard: int = 128                    # images a file
    workers: int = 4                    # threads that read and scale images
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("no source of images is named")
        if self.edges not in PREPARED_EDGES:
            raise ValueError(f"unknown edge maps {self.edges!r}; use {', '.join(PREPARED_EDGES)}")
        if min(self.batch, self.shard, self.workers) < 1:
            raise ValueError(f"batch {self.batch}, shard {self.shard} and workers {self.workers} must be at least 1")
        if self.resolution not in self.family.resolutions:
            raise ValueError(f"{self.family.name} is prepared at {', '.join(map(str, self.family.resolutions))} px, "
                             f"not {self.resolution}")
        if self.hed and self.edges != "hed":
            raise ValueError(f"the HED network {self.hed} is of no use with edges {self.edges}; use edges hed")


@dataclass(frozen=True)
class Report:
    """Numbers of examples in the folder, of those this run added, and what was left out."""

    examples: int
    added: int
    skipped: list[Skipped]
    cut: int                            # captions that were longer than the family's models read

    @property
    def reasons(self) -> Counter:
        """How often each kind of reason occurs; kinds are told apart by what stands before the first colon."""
        return Counter(one.reason.partition(":")[0] for one in self.skipped)


def prepare(job: PreparationJob, progress: Progress = lambda stage, done, total: None,
            networks: Networks | None = None) -> Report:
    """Prepare every image of the sources that is not in the folder yet, by default with the networks of job's files.

    May be stopped or killed at any time and run again. Broken images are listed in skipped.jsonl of the folder.
    Raises ValueError, FileNotFoundError or OSError, naming the file, for everything that is wrong with the rest.
    """
    networks = networks or from_files(job.vae, job.t5, job.bits, job.family, job.device)
    job.out.mkdir(parents=True, exist_ok=True)
    with claimed(job.out):
        _settle(job, networks)
        if are_prompts(job.sources):
            return _prompts(job, networks, progress)
        done = _done_in(job.out)
        found = survey(items_of(job.sources, job.family.name, job.resolution), done, read_skipped(job.out), job.family,
                       job.resolution, lambda count, last: progress("looking at images", count, count if last else 0))
        if not found.entries and not done:
            write_skipped(job.out, found.skipped)
            why = f"; all {len(found.skipped)} are listed with reasons in {job.out / 'skipped.jsonl'}"
            raise ValueError(f"the sources hold no image that can be used{why if found.skipped else ''}")
        try:
            check_needs(job, found, networks)
            captions = Captions(job.out)
            texts = [entry.text for entry in found.entries if entry.text is not None]
            cut = _texts(job, texts, captions, networks, progress)
            added = _images(job, found, captions, networks, progress)
        finally:
            write_skipped(job.out, found.skipped)
        captions.clear()
    return Report(len(done) + added, added, found.skipped, cut)


def _prompts(job: PreparationJob, networks: Networks, progress: Progress) -> Report:
    """Captions alone."""
    if job.edges != "none":
        raise ValueError(f"captions without images have no edge maps; use edges none, not {job.edges}")
    found = waiting(job)
    if networks.text is None:
        raise ValueError(f"{len(found)} captions have no features yet; name a T5 encoder with --t5")
    captions = Captions(job.out)
    cut = _texts(job, [text for _, text in found], captions, networks, progress)
    added = write_prompts(job, found, captions, _metadata(job), lambda done, total: progress("writing", done, total))
    captions.clear()
    return Report(sum(len(Shard(path)) for path in shard_paths(job.out)), added, [], cut)


def _settle(job: PreparationJob, networks: Networks) -> None:
    for path in (job.hed, job.null):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
    settle(job.out, {"family": job.family.name, "resolution": job.resolution, "edges": job.edges,
                     "HED network": weights_fingerprint(job.hed), **networks.facts},
           begun=bool(shard_paths(job.out) or len(Captions(job.out)) or (job.out / "null.safetensors").exists()))


def _done_in(folder: Path) -> dict[str, str]:
    """The keys of all examples in a folder with their marks, which older files do not have."""
    done: dict[str, str] = {}
    for shard in map(Shard, shard_paths(folder)):
        done.update(zip(shard.keys, shard.marks or [""] * len(shard)))
    return done


def check_needs(job: PreparationJob, found: Survey, networks: Networks) -> None:
    """Refuse to begin without the networks that the images at hand need."""
    entries = found.entries
    texts = sum(entry.text is not None for entry in entries)
    encoded = sum(entry.item.moments is None for entry in entries)
    mapped = sum(job.edges != "none" and not uses_hint(entry.item, job.edges) for entry in entries)
    blind = sum(entry.item.image is None for entry in entries if not uses_hint(entry.item, job.edges))
    if texts and networks.text is None:
        raise ValueError(f"{texts} captions have no features yet; name a T5 encoder with --t5")
    if (encoded or mapped) and networks.images is None:
        raise ValueError(f"{max(encoded, mapped)} images have no latents yet; name an autoencoder with --vae")
    if job.edges == "hed" and mapped and job.hed is None:
        raise ValueError(f"{mapped} images have no HED edge maps yet; name ControlNetHED.pth with --hed")
    if job.edges != "none" and blind:
        raise ValueError(f"{blind} images have latents but no image file to find edges in; put the images beside "
                         "the metadata (InternImgs), or use --edges none")
    if not (job.out / "null.safetensors").exists() and networks.text is None and job.null is None:
        raise ValueError("the features of the empty caption are needed too; name a T5 encoder with --t5, or a file "
                         "made by `python -m pixart encode \"\"` with --null")


# -- text --------------------------------------------------------------------------------------------------------------

def _texts(job: PreparationJob, texts: list[str], captions: Captions, networks: Networks, progress: Progress) -> int:
    """Features of these captions and of the empty one; the text encoder is freed before this returns."""
    null = job.out / "null.safetensors"
    if job.null is not None and not null.exists():
        encoded = load_embeddings(job.null)
        if encoded.reports[0].prompt:
            raise ValueError(f"{job.null} holds the prompt {encoded.reports[0].prompt!r}, expected the empty one; make "
                             "it with `python -m pixart encode \"\"`")
        write_tensors(null, {"features": half(encoded.context[0], job.null), "mask": encoded.mask[0].byte()})
    if not null.exists():
        texts = ["", *texts]
    batch = job.batch if job.device.startswith("cuda") else 1       # on a CPU a batch gains nothing
    cut = encode_captions(captions, texts, networks.text, job.family.tokens, batch,
                          lambda done, total: progress("captions", done, total)) if texts else 0
    if not null.exists():
        features = captions.features("")
        write_tensors(null, {"features": features, "mask": torch.ones(len(features), dtype=torch.uint8)})
    return cut


# -- images ----------------------------------------------------------------------------------------------------------

def _images(job: PreparationJob, found: Survey, captions: Captions, networks: Networks, progress: Progress) -> int:
    """Write the shards of every bucket; returns how many examples they got."""
    total, added, seen = len(found.entries), 0, 0
    if not total:
        return 0
    reader = _reader(job, found, captions, networks)
    for sides, entries in found.buckets.items():
        for at in range(0, len(entries), job.shard):
            ready: list[Example] = []
            try:
                for example in reader.examples(entries[at:at + job.shard], found.skipped):
                    ready.append(example)
                    progress("images", seen + len(ready), total)
            finally:                    # stopped in between, what is ready is kept too
                if ready:
                    write_shard(next_shard(job.out, sides), stack(ready), _metadata(job),
                                [example.key for example in ready], [example.mark for example in ready])
            added += len(ready)
            seen += min(job.shard, len(entries) - at)
            if len(ready) < min(job.shard, len(entries) - at):
                progress("images", seen, total)
    return added


def _reader(job: PreparationJob, found: Survey, captions: Captions, networks: Networks) -> ExampleReader:
    vae = networks.images() if networks.images else None
    computed = [entry for entry in found.entries if entry.item.moments or uses_hint(entry.item, job.edges)]
    if vae and vae.tiny and computed:
        raise ValueError(f"{len(computed)} images have latents with a spread, computed before, which this tiny "
                         "autoencoder does not give; name the VAE they came from")
    mapped = job.edges != "none" and any(not uses_hint(entry.item, job.edges) for entry in found.entries)
    maps = EdgeMaps(job.edges, job.hed, job.device) if mapped else None
    return ExampleReader(captions, vae, maps, job.family, job.resolution, job.edges, job.batch, job.workers)


def _metadata(job: PreparationJob) -> dict[str, str]:
    return {"latent_space": job.family.latent_space, "caption_tokens": str(job.family.tokens), "edges": job.edges,
            "family": job.family.name, "resolution": str(job.resolution)}
