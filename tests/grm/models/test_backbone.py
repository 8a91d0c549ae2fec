import pytest
import torch

from grm.errors import CheckpointError
from grm.models.backbone import HashedText, _stable_hash, build_backbone


@pytest.mark.parametrize(("name", "size"), [("compact", 64), ("compact", 8), ("mobilenet_v3_small", 32)])
def test_images_to_features(name, size):
    torch.manual_seed(0)
    encoder = build_backbone(name, 12).eval()
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        features = encoder(images)
        alone = encoder(images[1:2])
    assert features.shape == (3, 12)
    torch.testing.assert_close(alone, features[1:2])
    assert (features[0] - features[1]).abs().max() > 0.01 * features.abs().max(), "all images look alike"


def test_every_weight_learns():
    encoder = build_backbone("compact", 8)
    encoder(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet1800", "", "fasterrcnn_resnet50_fpn", "Compact"])
def test_unknown_backbones(name):
    with pytest.raises(CheckpointError, match=f"backbone {name!r}; expected 'compact'"):
        build_backbone(name, 8)


def test_text_of_any_kind_gets_a_vector():
    torch.manual_seed(0)
    text = HashedText(4096, 16)
    vectors = text(["open the door", "", "öffne die Tür", "open the door"])
    assert vectors.shape == (4, 16)
    assert torch.isfinite(vectors).all()
    torch.testing.assert_close(vectors[0], vectors[3])
    torch.testing.assert_close(vectors[0], text(["open the door"])[0])
    assert (vectors[0] - vectors[2]).abs().max() > 1e-3


def test_spelling_is_what_makes_names_alike():
    torch.manual_seed(0)
    text = HashedText(4096, 64)
    known, alike, other = text(["wrist_camera_left", "wrist camera right", "overhead"])
    near, far = (torch.cosine_similarity(known, v, dim=0) for v in (alike, other))
    assert near > far + 0.2
    torch.testing.assert_close(*text(["Open-The DOOR", "open_the door"]))


def test_hashes_are_the_published_ones_whatever_the_process():
    # http://www.isthe.com/chongo/tech/comp/fnv/: FNV-1a, 32 bits
    assert [_stable_hash(text) for text in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]
