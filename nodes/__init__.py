"""The menu: every node, in the order of a workflow."""
from .cache import PixArtCache
from .check import PixArtCheck
from .compare import PixArtCompare
from .control import PixArtControlNetApply, PixArtControlNetLoader
from .edges import PixArtEdges, PixArtHED
from .feedback import PixArtFeedback
from .former import PixArtFormerSize, PixArtFormerSizeCondition
from .host.guest import taken
from .latent import PixArtEmptyLatent
from .loaders import PixArtLoader, PixArtT5Loader
from .lora import PixArtDeltaLoraLoader, PixArtLoraLoader
from .nag import PixArtNAG
from .prompts import PixArtPromptList
from .reno import PixArtReNO
from .sampling import PixArtDMDSampler, PixArtLCMSampler, PixArtLCMSigmas, PixArtSteps
from .saved_prompt import PixArtLoadPrompt, PixArtSavePrompt
from .sketch import PixArtSketch
from .text import PixArtTextEncode
from .train import PixArtTrain

# Ids are saved in people's workflows: they never change.
TITLES = {
    PixArtLoader: "Load PixArt",
    PixArtCheck: "PixArt Check",
    PixArtDeltaLoraLoader: "Load PixArt LoRA",
    PixArtT5Loader: "Load T5 for PixArt",
    PixArtPromptList: "PixArt Prompt List",
    PixArtTextEncode: "PixArt Text Encode",
    PixArtSavePrompt: "PixArt Save Prompt",
    PixArtLoadPrompt: "PixArt Load Prompt",
    PixArtEmptyLatent: "PixArt Empty Latent",
    PixArtControlNetLoader: "Load PixArt ControlNet",
    PixArtSketch: "PixArt Sketch",
    PixArtEdges: "PixArt Edges",
    PixArtHED: "PixArt HED",
    PixArtControlNetApply: "Apply PixArt ControlNet",
    PixArtCache: "PixArt Cache",
    PixArtNAG: "PixArt Negative Prompt (NAG)",
    PixArtLCMSampler: "PixArt LCM Sampler",
    PixArtLCMSigmas: "PixArt LCM Schedule",
    PixArtDMDSampler: "PixArt One-Step (DMD)",
    PixArtSteps: "PixArt Steps",
    PixArtCompare: "PixArt Compare",
    PixArtFeedback: "PixArt Feedback (ILF)",
    PixArtTrain: "PixArt Train",
    PixArtReNO: "PixArt ReNO",
    PixArtFormerSize: "PixArt Size (as in ExtraModels)",
    PixArtFormerSizeCondition: "PixArt Size Condition (as in ExtraModels)",
}
# For workflows saved with them; left to another pack that has them, as ComfyUI_ExtraModels has this one.
FORMER = {PixArtLoraLoader: "Load PixArt LoRA (former id)"}
TITLES.update({node: title for node, title in FORMER.items() if not taken(node.__name__)})

NODE_CLASS_MAPPINGS = {node.__name__: node for node in TITLES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: title for node, title in TITLES.items()}
