"""Images and patches: what a protocol makes of them follows from seed, epoch and number alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torchvision.datasets import FakeData

import lwdna
from lwdna.training import Images, Patches, Pictures, TensorImages, tensor_data
from lwdna.training.images import FileSet, TensorSet
from lwdna.training.loading import Batches, evaluation_batches, training_set
from lwdna.training.pictures import PatchSet, PictureSet, smaller
from lwdna.training.randomness import Draw
from tests.training.runs import SIDE, patterns, pictures, protocol, restoration

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # values as they are


def draws(*indices: int, seed: int = 3, epoch: int = 1) -> list[Draw]:
    return [Draw(seed, epoch, index) for index in indices]


def test_windows_are_cut_from_the_framed_image_and_mirrored() -> None:
    images, labels = patterns(64)
    settings = Images(size=SIDE, crop="padded", padding=2, flip=0.5, **UNIT)
    found, classes = TensorSet(TensorImages(images, labels), settings, training=True).__getitems__(
        draws(*range(64))
    )
    assert torch.equal(classes, labels)
    seen = set()
    for image, cut in zip(images, found.round().byte(), strict=True):
        framed = torch.nn.functional.pad(image, (2, 2, 2, 2))
        options = {
            (row, column, flip): framed[:, row : row + SIDE, column : column + SIDE]
            for row in range(5)
            for column in range(5)
            for flip in (False, True)
        }
        match = [k for k, v in options.items() if torch.equal(v.flip(2) if k[2] else v, cut)]
        assert len(match) == 1
        seen.add(match[0])
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}


def test_tests_see_images_as_they_are_normalised() -> None:
    images, labels = patterns(4)
    settings = Images(size=SIDE, crop="padded", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    found, _ = TensorSet(TensorImages(images, labels), settings, training=False).__getitems__(
        draws(2, 0)
    )
    expected = images[[2, 0]] / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(found, expected / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))


def sets() -> dict[str, object]:
    fake = FakeData(12, (3, 12, 12), 4)
    jitter = Images(size=8, crop="resized", color_jitter=0.4, erasing=0.5)
    noisy = Patches(size=8, per_epoch=12, channels=1, sigma=20.0)
    return {
        "tensors": TensorSet(
            TensorImages(*patterns(12)), Images(size=SIDE, crop="padded"), training=True
        ),
        "padded files": FileSet(fake, Images(size=12, crop="padded"), training=True),
        "resized files": FileSet(fake, jitter, training=True),
        "noise": PatchSet(pictures(3, 16, 20, 1), noisy),
        "enlarging": PatchSet(pictures(3, 16, 20), Patches(size=8, per_epoch=12, scale=2)),
    }


def batch(dataset: object, wanted: list[Draw]) -> list[torch.Tensor]:
    if isinstance(dataset, TensorSet):
        return list(dataset.__getitems__(wanted)[0])
    return [dataset[draw][0] for draw in wanted]  # type: ignore[index]


@pytest.mark.parametrize("name", sets())
def test_an_image_is_the_same_in_any_batch_and_process(name: str) -> None:
    dataset = sets()[name]
    together = batch(dataset, draws(*range(12)))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    alone = batch(sets()[name], draws(7))[0]
    assert torch.equal(alone, together[7])
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()
    for other in (draws(7, epoch=2), draws(7, seed=4)):
        assert not torch.equal(batch(dataset, other)[0], alone)


def test_batches_of_several_processes_are_those_of_one() -> None:
    def epoch(rank: int, ranks: int, number: int) -> list[list[Draw]]:
        batches = Batches(43, 8, seed=2, rank=rank, ranks=ranks)
        batches.set_epoch(number)
        assert len(batches) == len(list(batches)) == 5
        return list(batches)

    whole = epoch(0, 1, 3)
    parts = [epoch(rank, 4, 3) for rank in range(4)]
    for k, mine in enumerate(whole):
        assert len(mine) == 8
        assert sorted(mine) == sorted(draw for part in parts for draw in part[k])
    assert len({draw for mine in whole for draw in mine}) == 40
    assert whole != epoch(0, 1, 4)
    with pytest.raises(lwdna.TrainingError, match="a multiple of 3"):
        Batches(43, 8, seed=0, rank=0, ranks=3)
    with pytest.raises(lwdna.TrainingError, match="has 43 images"):
        Batches(43, 44, seed=0, rank=0, ranks=1)


def test_every_test_image_is_seen_once() -> None:
    source = TensorImages(*patterns(23))
    seen = [
        int(label)
        for rank in range(3)
        for _, labels in evaluation_batches(source, protocol(), rank=rank, ranks=3)
        for label in labels
    ]
    assert sorted(seen) == sorted(source.labels.tolist())


def test_patches_of_input_and_target_show_the_same_place() -> None:
    source = pictures(2, 32, 44)
    settings = Patches(size=16, per_epoch=20, scale=4)
    dataset = PatchSet(source, settings)
    assert len(dataset) == 20
    for draw in draws(*range(6)):
        x, y = dataset[draw]
        picture = source[draw.number % 2]
        small = smaller(picture, 4).float()
        spots = [
            (r, c, f)
            for f in range(8)
            for r in range(small.shape[1] - 3)
            for c in range(small.shape[2] - 3)
            if torch.equal(turned(small[:, r : r + 4, c : c + 4], f), x)
        ]
        assert any(
            torch.equal(turned(picture[:, 4 * r : 4 * r + 16, 4 * c : 4 * c + 16].float(), f), y)
            for r, c, f in spots
        )


def turned(patch: torch.Tensor, number: int) -> torch.Tensor:
    patch = patch.flip(1) if number & 1 else patch
    patch = patch.flip(2) if number & 2 else patch
    return patch.transpose(1, 2) if number & 4 else patch


def test_noise_has_the_protocols_deviation_and_white() -> None:
    settings = Patches(size=64, per_epoch=4, channels=1, sigma=50.0, white=1.0)
    dataset = PatchSet(pictures(1, 64, 64, 1), settings)
    noise = torch.cat([x - y for x, y in (dataset[draw] for draw in draws(0, 1, 2, 3))])
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(50 / 255, rel=0.03)
    assert dataset[Draw(0, 0, 0)][1].max() <= 1


def test_test_pictures_are_whole_trimmed_and_always_the_same() -> None:
    noisy = PictureSet(pictures(2, 21, 18, 1), Patches(size=8, per_epoch=1, channels=1, sigma=9.0))
    assert torch.equal(noisy[Draw(0, 0, 1)][0], noisy[Draw(0, 0, 1)][0])
    assert noisy[Draw(0, 0, 1)][1].shape == (1, 21, 18)
    enlarging = PictureSet(pictures(1, 21, 18), Patches(size=8, per_epoch=1, scale=4))
    x, y = enlarging[Draw(0, 0, 0)]
    assert x.shape == (3, 5, 4) and y.shape == (3, 20, 16)


def test_reducing_is_the_bicubic_filter_of_pillow() -> None:
    from PIL import Image

    picture = 64 + pictures(1, 64, 48)[0] // 2  # Pillow clips between its two passes, too
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    theirs = np.asarray(image.resize((12, 16), Image.Resampling.BICUBIC)).astype(int)
    ours = smaller(picture, 4).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_pictures_from_files(tmp_path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    values = pictures(1, 20, 24)[0].permute(1, 2, 0).numpy()
    Image.fromarray(values).save(tmp_path / "in" / "b.png")
    Image.fromarray(values).convert("L").save(tmp_path / "a.BMP")
    opened = Pictures.folder(tmp_path)
    assert [path.name for path in opened.pictures] == ["a.BMP", "b.png"]  # type: ignore[union-attr]
    assert torch.equal(opened[1], pictures(1, 20, 24)[0])
    assert opened[0].shape == (3, 20, 24)
    assert Pictures.folder(tmp_path, 1)[1].shape == (1, 20, 24)
    (tmp_path / "zz.png").write_bytes(b"no picture")
    with pytest.raises(lwdna.TrainingError, match=r"zz\.png is no picture"):
        Pictures.folder(tmp_path)[2]


def test_data_that_do_not_fit_are_refused_by_name() -> None:
    images, labels = patterns(8)
    refused = {
        "uint8 of shape": lambda: TensorImages(images.float(), labels),
        "labels are": lambda: TensorImages(images, labels.float()),
        "labels of 'train' run from 0 to 3": lambda: tensor_data((images, labels), {}, classes=3),
        "named 'ema'": lambda: tensor_data(None, {"ema": (images, labels)}, classes=4),
        r"images\.size=16": lambda: training_set(
            TensorImages(images, labels), protocol("images.size=16")
        ),
        "crop='padded' or 'whole'": lambda: training_set(
            TensorImages(images, labels), protocol("images.crop=resized")
        ),
        "it takes labelled images": lambda: training_set(pictures(1, 16, 16), protocol()),
        "it takes Pictures": lambda: training_set(
            TensorImages(images, labels), restoration("denoising", sigma=9.0)
        ),
        r"patches\.channels=1": lambda: training_set(
            pictures(1, 16, 16), restoration("denoising", sigma=9.0, channels=1)
        ),
        "take smaller patches": lambda: training_set(
            pictures(1, 12, 16), restoration("denoising", sigma=9.0)
        ),
        "no pictures": lambda: Pictures([]),
        "picture 0 is": lambda: Pictures([torch.zeros(1, 4, 4, dtype=torch.uint8)]),
    }
    for said, make in refused.items():
        with pytest.raises(lwdna.TrainingError, match=said):
            make()
