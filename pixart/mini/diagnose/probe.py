"""What a small read-out finds in the text features: what they do not tell, no transformer can show."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint import read_config
from ...text.t5 import T5Encoder
from .. import Files
from ..measure.prompts import Prompts
from ..prepare import scene_and_caption
from ..scenes import ATTRIBUTES, labels

TRAINING, TESTED = 6000, 2000            # captions
EPOCHS, BATCH, RATE = 15, 250, 1e-2


class Probe(nn.Module):
    """For every attribute one query, whose softmax over the tokens averages their features, and a linear classifier.

    Nothing else: each answer is linear in an average of the features, and the weights of the average are an
    exponential of a linear function of each token's own features. So a word's features must themselves tell which of
    two things it belongs to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Linear(width, len(ATTRIBUTES), bias=False)
        self.answers = nn.ModuleList(nn.Linear(width, len(known)) for known in ATTRIBUTES.values())

    def forward(self, features: Tensor, mask: Tensor) -> list[Tensor]:
        """features (B, L, C), mask (B, L) -> logits (B, answers) of every attribute."""
        weights = self.queries(features).masked_fill(~mask[..., None], -torch.inf).softmax(1)
        read = weights.transpose(1, 2) @ features                              # (B, attributes, C)
        return [head(read[:, k]) for k, head in enumerate(self.answers)]


def probe_encoder(files: Files, seed: int = 0, crowded: bool = False, device: str | torch.device = "cpu",
                  training: int = TRAINING, tested: int = TESTED) -> dict[str, tuple[float, float]]:
    """Shares read rightly by attribute: of captions the probe was trained on, and of held-out ones.

    Trained on captions of the training split, tested on combinations that the text encoder never saw either.
    """
    config = read_config(files.teacher)
    encoder = T5Encoder(files.t5, bits=16, device=device)
    seen = [scene_and_caption(index, seed, "train", crowded) for index in range(training)]
    held = Prompts.held_out(tested, seed, crowded)
    sets = []
    for scenes, texts in (([scene for scene, _ in seen], [text for _, text in seen]), (held.scenes, held.captions)):
        encoded = encoder.encode(texts, config.caption_tokens, config.cleans_captions, BATCH)
        wanted = torch.tensor([labels(scene) for scene in scenes], device=device)
        sets.append((encoded.context.to(device), encoded.mask.to(device), wanted))
    encoder.close()
    model = fit_probe(sets[0], seed)
    return {name: (found, kept) for name, found, kept in zip(ATTRIBUTES, *(shares(model, part) for part in sets))
            if kept == kept}


ProbeData = tuple[Tensor, Tensor, Tensor]           # features (n, L, C), mask (n, L), labels (n, attributes)


def fit_probe(part: ProbeData, seed: int) -> Probe:
    """Cross entropy of the stated attributes, each weighed alike; features are scaled to unit variance first."""
    features, mask, wanted = part
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Probe(features.shape[2])
        order = [torch.randperm(len(wanted)).split(BATCH) for _ in range(EPOCHS)]
    model.to(features.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    steps = EPOCHS * len(order[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for numbers in (some.to(features.device) for epoch in order for some in epoch):
        logits = model(features[numbers], mask[numbers])
        loss = torch.stack([F.cross_entropy(given, column, reduction="sum") / (column >= 0).sum().clamp(min=1)
                            for given, column in zip(logits, wanted[numbers].T)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def shares(model: Probe, part: ProbeData) -> list[float]:
    """Share read rightly of every attribute, nan where none was stated."""
    features, mask, wanted = part
    parts = [torch.stack([logits.argmax(1) for logits in model(*some)], 1)
             for some in zip(features.split(BATCH), mask.split(BATCH))]
    asked = wanted >= 0
    return (((torch.cat(parts) == wanted) & asked).sum(0) / asked.sum(0)).tolist()
