"""Wrong inputs of a node end in one sentence before it runs, and errors carry names that people know. Needs no host."""
from types import ModuleType, SimpleNamespace

import pytest
import torch

NOTHING_FINITE = torch.full((1, 2, 2, 3), float("nan"))


@pytest.fixture(scope="module")
def arguments(extension) -> ModuleType:
    from pixart_extension.nodes import arguments
    return arguments


@pytest.fixture
def node(arguments):
    """One of each kind of input; calling it returns what it was given."""
    class Node:
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"file": (["a.safetensors"],), "steps": ("INT", {"min": 1, "max": 8}),
                                 "cfg": ("FLOAT", {"min": 0.0, "max": 30.0}), "rule": (["official", "diffusers"],)},
                    "optional": {"image": ("IMAGE",), "latent": ("LATENT",), "positive": ("CONDITIONING",),
                                 "model": ("MODEL",), "text": ("STRING", {})}}

        @arguments.checked
        def run(self, file, steps, cfg, rule, image=None, latent=None, positive=None, model=None, text=None):
            return file, steps, cfg, rule, image, latent, positive, model, text
    return Node()


RIGHT = {"file": "a.safetensors", "steps": 4, "cfg": 1.0, "rule": "official"}


@pytest.mark.parametrize("more", [
    {}, {"steps": 1}, {"steps": 8}, {"cfg": 0}, {"cfg": 30.0}, {"rule": "diffusers"}, {"file": "written/otherwise.pth"},
    {"image": torch.zeros(1, 2, 2, 3)}, {"image": torch.zeros(2, 3, 4, 1)}, {"image": torch.zeros(1, 1, 1, 4)},
    {"latent": {"samples": torch.zeros(1, 4, 2, 2)}}, {"latent": {"samples": SimpleNamespace(is_nested=True)}},
    {"positive": [[torch.zeros(1, 2, 3), {}]]}, {"positive": [(torch.zeros(1, 2, 3), {"strength": 1.0})] * 2},
    {"model": SimpleNamespace(model=None)}, {"text": ""}, {"image": None, "model": None}])
def test_what_is_declared_reaches_the_method_as_it_is(node, more):
    given = {**RIGHT, **more}
    assert node.run(**given) == tuple(given.get(name) for name in ("file", "steps", "cfg", "rule", "image", "latent",
                                                                   "positive", "model", "text"))


@pytest.mark.parametrize("more, message", [
    ({"steps": 0}, "steps is 0; expected a whole number from 1 to 8"),
    ({"steps": 9}, "steps is 9; expected a whole number from 1 to 8"),
    ({"steps": 4.0}, "steps is 4.0; expected a whole number from 1 to 8"),
    ({"steps": True}, "steps is True; expected a whole number from 1 to 8"),
    ({"cfg": float("nan")}, "cfg is nan; expected a number from 0.0 to 30.0"),
    ({"cfg": float("inf")}, "cfg is inf; expected a number from 0.0 to 30.0"),
    ({"cfg": "4"}, "cfg is the text '4'; expected a number from 0.0 to 30.0"),
    ({"rule": "other"}, "rule is the text 'other'; expected one of official, diffusers"),
    ({"rule": None}, "rule is nothing (null); expected one of official, diffusers"),
    ({"file": 3}, "file is 3; expected the name of a file"),
    ({"text": ["a"]}, "text is a list of 1 entries; expected a text"),
    ({"model": {"model": 1}}, "model is a dict of 1 entries; expected a MODEL, as of Load PixArt"),
    ({"latent": torch.zeros(1, 4, 2, 2)}, "latent is a tensor of shape (1, 4, 2, 2); expected a LATENT"),
    ({"latent": {"samples": "x"}}, "latent is a dict of 1 entries; expected a LATENT"),
    ({"positive": []}, "positive is a list of 0 entries; expected a CONDITIONING"),
    ({"positive": [[torch.zeros(1, 2, 3)]]}, "positive is a list of 1 entries; expected a CONDITIONING"),
    ({"positive": [[{}, torch.zeros(1, 2, 3)]]}, "positive is a list of 1 entries; expected a CONDITIONING"),
    ({"positive": [[torch.zeros(1, 2, 3), 1.0]]}, "positive is a list of 1 entries; expected a CONDITIONING"),
    ({"image": torch.zeros(2, 2, 3)}, "image is a tensor of shape (2, 2, 3); expected an IMAGE"),
    ({"image": torch.zeros(1, 2, 2, 2)}, "image is a tensor of shape (1, 2, 2, 2); expected an IMAGE"),
    ({"image": torch.zeros(0, 2, 2, 3)}, "image is a tensor of shape (0, 2, 2, 3); expected an IMAGE"),
    ({"image": torch.zeros(1, 2, 2, 3, dtype=torch.uint8)}, "image is a tensor of shape (1, 2, 2, 3); expected an"),
    ({"image": NOTHING_FINITE}, "image is a tensor of shape (1, 2, 2, 3) with values that are not finite; expected")])
def test_everything_else_is_refused_with_what_was_found_and_expected(node, more, message):
    with pytest.raises(ValueError) as refused:
        node.run(**{**RIGHT, **more})
    assert str(refused.value).startswith(message)


def test_an_error_of_the_extension_has_the_name_of_the_built_in_one(arguments):
    from pixart_extension.pixart.weights import CheckpointError

    class Node:
        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        @arguments.checked
        def run(self, error):
            raise error

    own = CheckpointError("x.safetensors", "it is damaged", "a whole file")
    with pytest.raises(ValueError) as shown:
        Node().run(own)
    assert type(shown.value) is ValueError and str(shown.value) == str(own) and shown.value.__cause__ is own
    other = KeyError("theirs")
    with pytest.raises(KeyError) as passed:
        Node().run(other)
    assert passed.value is other
