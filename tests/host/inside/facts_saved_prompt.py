"""PixArt Save Prompt and PixArt Load Prompt: the same image without the text encoder, and nothing lost unsaid."""
from pathlib import Path

import folder_paths
import torch
from facts_text import encode, our_clip, stock_clip
from support import node, pack, refusal

FOLDER = Path(folder_paths.models_dir) / "pixart_prompts"


def save(conditioning: list, name: str, text: str = "") -> tuple[list, str]:
    return node("PixArtSavePrompt")().save(conditioning, name, text)


def load(name: str) -> tuple[list, str]:
    return node("PixArtLoadPrompt")().load(name)


def test_what_is_loaded_is_what_was_saved_bit_for_bit():
    for number, clip in enumerate((our_clip(), stock_clip())):
        conditioning = [list(encode(clip, "a cat on a mat")[:2])]
        passed, report = save(conditioning, f"a cat {number}", "a cat on a mat")
        assert passed is conditioning and report == f"a cat {number}.safetensors"
        assert report in node("PixArtLoadPrompt").INPUT_TYPES()["required"]["file"][0]
        ((context, extra),), line = load(report)
        real, _, _ = pack("nodes.host.conditioning").compact_text(conditioning[0][0],
                                                                  conditioning[0][1].get("attention_mask"))
        assert torch.equal(context, real) and extra == {"pooled_output": None}
        assert line == f"{context.shape[1]} tokens, {context.shape[2]} numbers each: a cat on a mat"


def test_masked_tokens_are_left_out():
    context = torch.randn(1, 5, 64)
    save([[context, {"attention_mask": torch.tensor([[1, 1, 0, 1, 0]])}]], "masked")
    assert torch.equal(load("masked.safetensors")[0][0][0], context[:, [0, 1, 3]])


def test_another_prompt_is_never_replaced_and_the_same_one_changes_nothing():
    first = [[torch.randn(1, 4, 64), {"pooled_output": None}]]
    save(first, "kept", "first")
    before = node("PixArtLoadPrompt").IS_CHANGED("kept.safetensors")
    save(first, "kept", "another text")
    assert node("PixArtLoadPrompt").IS_CHANGED("kept.safetensors") == before
    said = refusal(save, [[torch.randn(1, 4, 64), {}]], "kept")
    assert said.startswith("another prompt is saved as kept.safetensors already")
    assert torch.equal(load("kept.safetensors")[0][0][0], first[0][0])


def test_what_a_file_cannot_keep_is_refused_and_nothing_is_written():
    one = torch.randn(1, 4, 64)
    for conditioning, found in (([[one, {"area": (8, 8, 0, 0)}]], "carries area, which a saved prompt does not keep"),
                                ([[one, {"width": 512, "height": 512}]], "carries height, width"),
                                ([[one, {"pooled_output": one}]], "another text encoder"),
                                ([[one, {}], [one, {}]], "holds 2 prompts; expected one"),
                                ([[one.repeat(3, 1, 1), {}]], "holds 3 prompts; expected one")):
        assert found in refusal(save, conditioning, "never"), found
    assert not (FOLDER / "never.safetensors").exists()
    for name in ("../never", "/never", "a/b", "a\\b", "", ".hidden", "never\0", "C:never"):
        assert "cannot be the name of a file" in refusal(save, [[one, {}]], name), name


def test_a_file_of_several_prompts_or_of_something_else_is_refused():
    text = pack("pixart.text")
    report = text.PromptReport("a", "a", 4, 4, 4)
    text.save_embeddings(FOLDER / "two.safetensors", text.Encoded(torch.randn(2, 4, 64), torch.ones(2, 4, dtype=bool),
                                                                 [report, report]))
    assert refusal(load, "two.safetensors").startswith("the file holds 2 prompts; expected one")
    from safetensors.torch import save_file
    save_file({"weight": torch.zeros(2)}, FOLDER / "other.safetensors")
    assert "holds no saved prompt" in refusal(load, "other.safetensors")
    assert "gone.safetensors is not in the model folder" in node("PixArtLoadPrompt").VALIDATE_INPUTS("gone.safetensors")
