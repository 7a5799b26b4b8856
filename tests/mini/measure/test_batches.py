"""Images by size, and values back in the order of the sentences."""
import torch

from pixart.mini.images import BUCKETS
from pixart.mini.measure.batches import BenchImages, each_pair, in_order, measure_each


def numbered(count: int) -> BenchImages:
    """Image i has the value i everywhere."""
    return BenchImages.of([torch.full((3, *BUCKETS[i % 5]), i / 255) for i in range(count)])


def test_images_are_found_by_their_sentence():
    for count in (1, 3, 5, 12):
        images = numbered(count)
        assert len(images) == count
        assert all(tuple(images[i].shape) == (3, *BUCKETS[i % 5]) for i in range(count))
        assert [round(images[i].mean().item() * 255) for i in range(count)] == list(range(count))


def test_values_come_in_the_order_of_the_sentences():
    def level(some):
        return (some.mean((1, 2, 3)) * 255).round()
    for count, batch in ((13, 2), (4, 10), (1, 1)):
        assert measure_each(numbered(count), batch, "cpu", level).tolist() == list(range(count))
    assert in_order(torch.tensor([0., 5., 1., 6., 2., 3., 4.])).tolist() == list(range(7))


def test_pairs_are_of_the_same_sentence():
    one, other = numbered(11), numbered(11)
    assert each_pair(one, other, 2, "cpu", lambda a, b: (a - b).abs().amax((1, 2, 3))).tolist() == [0.0] * 11


def test_the_first_images_stay_in_their_places():
    few = numbered(13).first(7)
    assert len(few) == 7 and [round(few[i].mean().item() * 255) for i in range(7)] == list(range(7))
    assert len(numbered(13).first(3)) == 3


def test_rows_of_a_group():
    assert (numbered(23).rows(range(6, 23, 5))[:, 0, 0, 0]).tolist() == [6, 11, 16, 21]
    assert (numbered(23).rows(range(3, 13, 5))[:, 0, 0, 0]).tolist() == [3, 8]
