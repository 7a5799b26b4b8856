"""Methods as text, and that an image depends on its sentence and noise alone."""
from pathlib import Path

import pytest
import torch

from pixart.mini import SHIPPED
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.methods import USUAL_METHODS, Sampled, few_step, method_of


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.open(SHIPPED, 12, 7, batch=2)


@pytest.mark.parametrize("text, want", [
    ("teacher:dpm:20:2.5", USUAL_METHODS[0]),
    ("student:lcm:4", USUAL_METHODS[1]),
    ("student:lcm", USUAL_METHODS[1]),
    ("student:lcm:1", USUAL_METHODS[3]),
    ("mine=teacher:dpm:8:3", Sampled("mine", "teacher", "dpm", 8, 3.0)),
    ("run/a.safetensors:lcm:2", Sampled("a, 2 steps", Path("run/a.safetensors"), "lcm", 2)),
    ("teacher+run/l.safetensors:lcm:4", Sampled("teacher + l, 4 steps", "teacher", "lcm", 4,
                                                lora=Path("run/l.safetensors"))),
    (r"C:\a b\x.safetensors:dmd", Sampled("x, 1 step, dmd", Path(r"C:\a b\x.safetensors"), "dmd", 1)),
    ("teacher:lcm:4", Sampled("teacher, 4 steps, lcm", "teacher", "lcm", 4)),
])
def test_lines_name_methods(text, want):
    found = method_of(text)
    assert (found.weights, found.sampler, found.steps, found.guidance, found.lora) == (
        want.weights, want.sampler, want.steps, want.guidance, want.lora)
    if "\\" not in text:                      # how a path of Windows splits depends on the system
        assert found.name == want.name


@pytest.mark.parametrize("text", ["teacher", "teacher:euler:4", "teacher:dpm:x", ":lcm:4", "teacher:dpm:20:2.5:1", ""])
def test_other_lines_are_refused(text):
    with pytest.raises(ValueError, match="is not a method"):
        method_of(text)


def test_guidance_without_effect_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="guidance, which the sampler lcm"):
        method_of("student:lcm:4:2.5")
    with pytest.raises(ValueError, match="0 LCM steps"):
        method_of("student:lcm:0")


def small_feedback(path: Path, depth: int | None = None, scale: float = 0.0) -> Path:
    """Feedback for the teacher with random weights, and scales that are all alike; depth: of another model."""
    from dataclasses import replace

    from pixart.checkpoint import read_config
    from pixart.checkpoint.feedback import save_feedback
    from pixart.model.feedback import Feedback
    config = read_config(SHIPPED.teacher)
    torch.manual_seed(0)
    feedback = Feedback(replace(config, depth=depth or config.depth), 2, 4)
    for name, parameter in feedback.named_parameters():
        torch.nn.init.constant_(parameter, scale) if name == "scales" else torch.nn.init.normal_(parameter, std=0.1)
    return save_feedback(path, feedback)


def test_feedback_is_a_method_and_costs_what_its_blocks_cost(bench, tmp_path):
    from pixart.mini.measure.cost import count
    plain = method_of("teacher:ddim:2:2.5")
    silent, loud = (method_of(f"teacher:ddim:2:2.5@{small_feedback(tmp_path / f'{name}.safetensors', scale=scale)}")
                    for name, scale in (("silent", 0.0), ("loud", 0.5)))
    assert loud.name == "teacher, 2 steps, guidance 2.5, ddim, feedback loud" and loud.cache is None
    few = bench.first(1)
    images = {method.name: method.generate(few)[0] for method in (plain, silent, loud)}
    assert torch.equal(images[plain.name], images[silent.name])
    assert not torch.equal(images[plain.name], images[loud.name])
    assert count(silent, few)[1] > 1.1 * count(plain, few)[1]


def test_feedback_of_another_model_or_with_another_sampler_is_refused_before_any_work(tmp_path):
    file = small_feedback(tmp_path / "deep.safetensors", depth=9)
    with pytest.raises(ValueError, match="feedback is for 9 blocks"):
        method_of(f"teacher:ddim:10:2.5@{file}").check(SHIPPED)
    with pytest.raises(ValueError, match="trained for the sampler ddim, not dpm"):
        method_of(f"teacher:dpm:10:2.5@{file}")


def test_students_and_loras_in_few_steps():
    made = few_step([Path("a=b+c.safetensors")], [Path("l.safetensors")], (4, 1))
    assert [one.name for one in made] == ["a=b+c, 4 steps", "a=b+c, 1 step", "teacher + l, 4 steps",
                                          "teacher + l, 1 step"]
    assert made[0].weights == Path("a=b+c.safetensors") and made[2].lora == Path("l.safetensors")


def test_missing_weights_are_refused_before_any_work(tmp_path):
    from pixart.checkpoint import CheckpointError
    with pytest.raises((FileNotFoundError, CheckpointError)):
        Sampled("x", tmp_path / "none.safetensors", "lcm", 1).check(SHIPPED)


def test_weights_written_anew_are_read_anew(tmp_path):
    import shutil
    file = tmp_path / "w.safetensors"
    shutil.copy(SHIPPED.teacher, file)
    method = Sampled("x", file, "lcm", 1)
    before = method.model(SHIPPED)
    assert method.model(SHIPPED) is before
    shutil.copy(SHIPPED.student, file)
    after = method.model(SHIPPED)
    assert not torch.equal(before.final_layer.linear.weight, after.final_layer.linear.weight)


def test_an_image_depends_on_neither_batch_nor_count(bench):
    """One level of 255 at most: another batch size may round the last bit of a product differently."""
    from dataclasses import replace
    method = USUAL_METHODS[2]
    whole = method.generate(bench)
    few = method.generate(replace(bench.first(6), batch=50))
    assert len(whole) == 12 and len(few) == 6
    assert max((whole[i] - few[i]).abs().max().item() for i in range(6)) <= 1.01 / 255


def test_another_run_gives_other_images(bench):
    one, other = USUAL_METHODS[3].generate(bench.first(5)), USUAL_METHODS[3].generate(bench.first(5).again(1))
    assert all(not torch.equal(one[i], other[i]) for i in range(5))


def test_captions_are_encoded_as_the_pipeline_does(bench):
    """Which cleans them first; and a group gets the features of its own sentences."""
    from pixart.generation.request import Request
    from pixart.train.preview import encode_request
    group = list(bench.prompts.groups(2))[3]
    request = Request(tuple(bench.prompts.captions[i] for i in group.members), height=128, width=128)
    want, null = encode_request(SHIPPED.t5, request, 40, True, bits=16)
    found = bench.text(group)
    assert torch.equal(found.mask, want.mask)
    torch.testing.assert_close(found.context, want.context, rtol=0.02, atol=0.02)
    torch.testing.assert_close(bench.null.context, null.context, rtol=0, atol=0)
