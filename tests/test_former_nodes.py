"""The nodes that stand in for those of ComfyUI_ExtraModels."""
import pytest
import torch

# model, ratio -> width, height, as that extension's table has them
SIZES = [("PixArtMS_XL_2", "0.25", 512, 2048), ("PixArtMS_XL_2", "1.00", 1024, 1024), ("PixArt_XL_2", "0.52", 352, 672),
         ("PixArtMS_Sigma_XL_2_2K", "1.67", 2560, 1536), ("PixArtMS_Sigma_XL_2_512", "4.00", 1024, 256),
         ("PixArtMS_Sigma_XL_2", "3.62", 1856, 512)]


@pytest.mark.parametrize(("model", "ratio", "width", "height"), SIZES)
def test_sizes_are_those_of_that_extension(extension, model, ratio, width, height):
    assert extension.NODE_CLASS_MAPPINGS["PixArtFormerSize"]().choose(model, ratio) == (width, height)


def test_the_size_is_told_beside_the_prompt_that_came_in(extension):
    given = [[torch.zeros(1, 2, 4), {"pooled_output": None}]]
    tell = extension.NODE_CLASS_MAPPINGS["PixArtFormerSizeCondition"]().tell
    ((told,),) = tell(given, 512, 768)
    assert told[0] is given[0][0] and told[1] == {"pooled_output": None, "width": 512, "height": 768}
    assert given[0][1] == {"pooled_output": None}
    assert tell(given, 0, 768) == (given,)
