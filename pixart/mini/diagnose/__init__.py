"""Where PixArt-mini's teacher loses what a prompt says: four experiments."""
import logging
from collections.abc import Sequence

from .. import SHIPPED, Files
from ..evaluate import Instrument
from ..measure.bench import Bench
from ..measure.methods import TEACHER_METHOD
from .finish import STARTS, finished
from .loss import losses
from .probe import TESTED, TRAINING, probe_encoder
from .report import Diagnosis, tables, write_diagnosis

__all__ = ["Diagnosis", "diagnose", "tables", "write_diagnosis"]

logger = logging.getLogger(__name__)


def diagnose(count: int = 200, seed: int = 7, files: Files = SHIPPED, device: str = "cpu", batch: int = 100,
             judge: str = "b", guidance: float = 2.5, crowded: bool = False,
             starts: Sequence[int] = STARTS, captions: tuple[int, int] = (TRAINING, TESTED)) -> Diagnosis:
    """Run all trials on `count` held-out prompts. Raises what reading the files raises.

    From which noise on is a real image, finished by the teacher, no longer what it was; what does the autoencoder
    alone lose; what can be read from the text features; how large is the error of the noise at each timestep.
    starts: the timesteps to finish from. captions: how many the probe is trained and tested on.
    """
    bench = Bench.open(files, count, seed, crowded, device, batch)
    instrument, model = Instrument(bench, judge), TEACHER_METHOD.model(files, bench.device)
    rows = {}
    for start in starts:
        rows[start] = instrument.row(f"t0 = {start}", finished(model, bench, instrument.real, start, guidance))
        right = rows[start].accuracy
        logger.info("finished from t = %d: %.1f %% of attributes, %.1f %% of images", start, 100 * right["all"],
                    100 * right["images"])
    bins = losses(model, bench, instrument.real)
    probed = probe_encoder(files, crowded=crowded, device=bench.device, training=captions[0], tested=captions[1])
    real = instrument.row("real", instrument.real)
    return Diagnosis(count, guidance, instrument.name, rows, real, probed, bins)
